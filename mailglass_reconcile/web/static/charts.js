"use strict";
// Shows the values of a chart's column under the chart: of the one that is pointed at, or chosen by the arrow keys.
(() => {
  const chosen = new Map(); // when each plot's column began: a refresh replaces the plots, and moves their columns
  let replacing = false;

  function columns(plot) {
    return [...plot.querySelectorAll(".columns-of-time rect")];
  }

  // The first column has no such time: what is older than it is all in it.
  function began(column) {
    return Number(column.dataset.began ?? 0);
  }

  function numberOf(plot) {
    return columns(plot).findLastIndex((column) => began(column) <= chosen.get(plot.id));
  }

  function show(plot) {
    const readout = document.getElementById(plot.getAttribute("aria-describedby"));
    const column = columns(plot)[numberOf(plot)];
    for (const one of plot.querySelectorAll(".chosen")) one.classList.remove("chosen");
    readout.dataset.peak ??= readout.textContent;
    column?.classList.add("chosen");
    const text = column ? column.querySelector("title").textContent : readout.dataset.peak;
    if (readout.textContent !== text) readout.textContent = text;
  }

  function choose(plot, number) {
    const column = columns(plot).at(Math.max(number, 0)) ?? columns(plot).at(-1);
    if (number === null || !column) chosen.delete(plot.id);
    else chosen.set(plot.id, began(column));
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
    const here = chosen.has(plot.id) ? numberOf(plot) : Infinity;
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
