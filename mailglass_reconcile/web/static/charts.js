"use strict";
// Shows the values of a chart's column under the chart: of the one that is pointed at, or chosen by the arrow keys.
(() => {
  const chosen = new Map(); // by plot; the plots are replaced when the page is refreshed
  let replacing = false;

  function columns(plot) {
    return [...plot.querySelectorAll(".columns-of-time rect")];
  }

  function show(plot) {
    const readout = document.getElementById(plot.getAttribute("aria-describedby"));
    const column = columns(plot)[chosen.get(plot.id)];
    for (const one of plot.querySelectorAll(".chosen")) one.classList.remove("chosen");
    readout.dataset.peak ??= readout.textContent;
    column?.classList.add("chosen");
    const text = column ? column.querySelector("title").textContent : readout.dataset.peak;
    if (readout.textContent !== text) readout.textContent = text;
  }

  function choose(plot, number) {
    if (number === null) chosen.delete(plot.id);
    else chosen.set(plot.id, Math.min(Math.max(number, 0), columns(plot).length - 1));
    show(plot);
  }

  const plotOf = (event) => event.target instanceof Element && event.target.closest(".plot");

  document.addEventListener("pointerover", (event) => {
    const plot = plotOf(event);
    const number = plot ? columns(plot).indexOf(event.target) : -1;
    if (number >= 0) choose(plot, number);
  });
  document.addEventListener("pointerout", (event) => {
    const plot = plotOf(event);
    if (plot && !plot.contains(event.relatedTarget) && plot !== document.activeElement) choose(plot, null);
  });
  document.addEventListener("focusin", (event) => {
    const plot = plotOf(event);
    if (plot && !chosen.has(plot.id)) choose(plot, Infinity);
  });
  document.addEventListener("focusout", (event) => {
    const plot = plotOf(event);
    if (plot && !replacing) choose(plot, null);
  });
  document.addEventListener("keydown", (event) => {
    const plot = plotOf(event);
    if (!plot) return;
    const here = chosen.get(plot.id) ?? Infinity;
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: Infinity }[event.key];
    if (event.key === "Escape") choose(plot, null);
    if (to === undefined) return;
    event.preventDefault();
    choose(plot, to);
  });
  document.addEventListener("replacing", () => {
    replacing = true;
  });
  document.addEventListener("replaced", () => {
    replacing = false;
    for (const plot of document.querySelectorAll(".plot")) if (chosen.has(plot.id)) show(plot);
  });
})();
