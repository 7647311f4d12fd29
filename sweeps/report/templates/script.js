"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Leaderboard: sort by a click on a heading, filter by typing.
  const table = document.getElementById("leaderboard");
  if (table) {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    const keyOf = (row, column, text) => {
      const field = row.cells[column];
      if (text) return field.textContent.trim().toLowerCase();
      return field.dataset.key === "" || field.dataset.key === undefined ? NaN : Number(field.dataset.key);
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const text = head.dataset.kind === "text";
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = all("tr", body).map((row) => [keyOf(row, column, text), row]);
      rows.sort(([a, one], [b, two]) => {
        // Figures at fewer steps are other quantities: they stay below, whichever way it is sorted.
        const short = one.classList.contains("short") - two.classList.contains("short");
        if (!text && short) return short;
        if (!text && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
        return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
      });
      body.append(...rows.map(([, row]) => row));
    }));
    const filter = document.getElementById("filter");
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      all("tr", body).forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        count += row.hidden ? 0 : 1;
      });
      document.getElementById("shown").textContent = wanted.length ? `${count} of ${body.rows.length}` : "";
    });
  }

  // Samples: every cell shows its last grid at or before the chosen step.
  const slider = document.getElementById("step");
  if (slider) {
    const steps = slider.dataset.steps.split(" ").map(Number);
    const show = () => {
      const step = steps[Number(slider.value)];
      document.getElementById("step-label").textContent = String(step);
      all(".grids figure").forEach((figure) => {
        const images = all("img", figure);
        const reached = images.filter((image) => Number(image.dataset.step) <= step);
        images.forEach((image) => { image.hidden = true; });
        const chosen = reached[reached.length - 1];
        if (chosen) chosen.hidden = false;
        figure.querySelector(".at").textContent = chosen ? chosen.dataset.step : "–";
        figure.classList.toggle("behind", !chosen || Number(chosen.dataset.step) < step);
      });
    };
    slider.addEventListener("input", show);
    show();
  }

  // A cell that is pointed at lights up wherever it is shown.
  const light = (event, on) => {
    const target = event.target.closest && event.target.closest("[data-cell]");
    if (target) all(`[data-cell="${CSS.escape(target.dataset.cell)}"]`).forEach((e) => e.classList.toggle("hot", on));
  };
  document.addEventListener("pointerover", (event) => light(event, true));
  document.addEventListener("pointerout", (event) => light(event, false));

  // Copy a configuration; where the browser keeps the clipboard to itself, select the text instead.
  all("button.copy").forEach((button) => button.addEventListener("click", async () => {
    const source = button.closest("details").querySelector("pre");
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch (error) {
      getSelection().selectAllChildren(source);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: copy it now";
    }
  }));

  // On paper everything is open, but for the configurations: they would fill most of it.
  addEventListener("beforeprint", () => all("section:not(#configs) details").forEach((d) => { d.dataset.was = d.open; d.open = true; }));
  addEventListener("afterprint", () => all("section:not(#configs) details").forEach((d) => { d.open = d.dataset.was === "true"; }));

  // Served while the sweep runs: ask now and then whether there is a newer page, which is then shown as this one was.
  const made = document.body.dataset.live;
  if (made) {
    const place = "prx-sweeps report " + location.pathname;
    const named = (details) => details.querySelector("summary").textContent.trim();
    const heads = all("#leaderboard thead th"), filter = document.getElementById("filter");
    const keep = () => {
      const sorted = heads.find((head) => head.hasAttribute("aria-sort"));
      sessionStorage.setItem(place, JSON.stringify({
        sorted: sorted ? [sorted.textContent.trim(), sorted.getAttribute("aria-sort")] : null,
        filter: filter ? filter.value : "",
        step: slider && Number(slider.value) < Number(slider.max) ? document.getElementById("step-label").textContent : null,
        open: all("details[open]").map(named),
        scroll: scrollY,
      }));
    };
    const restore = (was) => {
      const head = was.sorted && heads.find((one) => one.textContent.trim() === was.sorted[0]);
      for (let i = 0; head && i < 2 && head.getAttribute("aria-sort") !== was.sorted[1]; i++) head.querySelector("button").click();
      if (filter && was.filter) { filter.value = was.filter; filter.dispatchEvent(new Event("input")); }
      const at = slider && was.step ? slider.dataset.steps.split(" ").indexOf(was.step) : -1;
      if (at >= 0) { slider.value = String(at); slider.dispatchEvent(new Event("input")); }
      all("details").forEach((details) => { details.open = was.open.includes(named(details)); });
      scrollTo(0, was.scroll);
    };
    const was = sessionStorage.getItem(place);
    if (was) { sessionStorage.removeItem(place); restore(JSON.parse(was)); }
    setInterval(async () => {
      try {
        const version = await (await fetch("version", { cache: "no-store" })).text();
        if (version !== made) { keep(); location.reload(); }
      } catch (error) { /* the server has ended; what is shown stays */ }
    }, 3000);
  }
})();
