"use strict";
// Fetches the page every few seconds and replaces the parts that changed. Without it, reload the page instead.
(() => {
  const bar = document.getElementById("refresh");
  const retry = document.querySelector("[data-retry]");
  if (!bar || !(retry || document.querySelector("[data-live]"))) return;
  const told = document.getElementById("refreshed");
  const pause = document.getElementById("pause");
  const every = Number(bar.dataset.seconds) * 1000;
  let paused = false;
  let asking = false;
  let seen = new Date();

  const clock = () => `${seen.toISOString().slice(11, 19)} UTC`;

  function say(text) {
    if (told.textContent !== text) told.textContent = text;
  }

  function mayReplace(region) {
    const selection = document.getSelection();
    return selection.isCollapsed || !region.contains(selection.anchorNode);
  }

  function placeOf(element) {
    const href = element.getAttribute("href");
    return element.id ? `#${CSS.escape(element.id)}` : href ? `[href="${CSS.escape(href)}"]` : null;
  }

  function show(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const fresh = next.getElementById(region.id);
      if (!fresh) continue;
      for (const one of region.querySelectorAll("details[open]")) next.getElementById(one.id)?.setAttribute("open", "");
      if (fresh.outerHTML === region.outerHTML || !mayReplace(region)) continue;
      const focused = region.contains(document.activeElement) && placeOf(document.activeElement);
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
      seen = new Date();
      say("");
    } catch {
      say(`No answer since ${clock()}: what you see may be out of date.`);
    } finally {
      asking = false;
    }
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    say(paused ? `Paused at ${clock()}.` : "");
    refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  setInterval(refresh, every);
})();
