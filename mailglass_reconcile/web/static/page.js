"use strict";
// Fetches the page every few seconds and replaces the parts that changed; says how old they are; copies commands.
// Without it, reload the page instead.
(() => {
  const bar = document.getElementById("refresh");
  const retry = document.querySelector("[data-retry]");
  const live = bar && (retry || document.querySelector("main [data-live]"));
  const stale = document.getElementById("stale");
  const updated = document.getElementById("updated");
  const pause = document.getElementById("pause");
  const every = live ? Number(bar.dataset.seconds) * 1000 : 0;
  const PAUSED_LONG = 60;
  let paused = false;
  let asking = false;
  let failed = false;
  let seen = Date.now();

  const clock = () => `${new Date(seen).toISOString().slice(11, 19)} UTC`;

  function set(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function tellAge() {
    const seconds = Math.round((Date.now() - seen) / 1000);
    const age = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
    set(updated, paused ? `paused at ${clock()}` : `updated ${age} ago`);
    if (failed) set(stale, `No answer since ${clock()}: what you see may be out of date.`);
    else if (paused && seconds > PAUSED_LONG) set(stale, `Updates are paused: what you see is of ${clock()}.`);
    else set(stale, "");
  }

  function mayReplace(region) {
    const selection = document.getSelection();
    return selection.isCollapsed || !region.contains(selection.anchorNode);
  }

  function placeOf(element) {
    for (const name of ["href", "data-copy"]) {
      const value = element.getAttribute(name);
      if (!element.id && value) return `[${name}="${CSS.escape(value)}"]`;
    }
    return element.id ? `#${CSS.escape(element.id)}` : null;
  }

  function prepare(region) {
    for (const button of region.querySelectorAll("button.copy")) button.hidden = false;
    for (const time of region.querySelectorAll("time")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const here = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
      time.title = `${time.dateTime.replace("T", " ").replace("Z", " UTC")}\n${here}`;
    }
  }

  function show(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    if (next.title) document.title = next.title;
    for (const region of document.querySelectorAll("[data-live]")) {
      const fresh = next.getElementById(region.id);
      if (!fresh) continue;
      for (const one of region.querySelectorAll("details[open]")) next.getElementById(one.id)?.setAttribute("open", "");
      prepare(fresh);
      if (fresh.innerHTML === region.innerHTML || !mayReplace(region)) continue;
      const focused = region.contains(document.activeElement) && placeOf(document.activeElement);
      document.dispatchEvent(new Event("replacing"));
      region.replaceChildren(...fresh.childNodes);
      if (focused) region.querySelector(focused)?.focus({ preventScroll: true });
      document.dispatchEvent(new Event("replaced"));
    }
  }

  async function refresh() {
    if (paused || asking || document.hidden) return;
    asking = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Fragment": "1" }, cache: "no-store" });
      if (answer.status === 401 || (answer.ok && retry)) location.reload();
      if (!answer.ok) throw new Error(answer.status);
      show(await answer.text());
      seen = Date.now();
      failed = false;
    } catch {
      failed = true;
    } finally {
      asking = false;
      tellAge();
    }
  }

  async function copy(button) {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text); // there is none on a page without HTTPS
    } catch {
      const field = document.createElement("textarea");
      field.className = "hidden";
      field.value = text;
      button.after(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      button.focus();
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.copy");
    if (button) copy(button);
  });
  prepare(document);
  if (!live) return;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    tellAge();
    refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  tellAge();
  setInterval(tellAge, 1000);
  setInterval(refresh, every);
})();
