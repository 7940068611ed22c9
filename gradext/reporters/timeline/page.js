"use strict";
(() => {
  const known = JSON.parse(document.getElementById("ticks").textContent);
  const lanes = [...document.querySelectorAll(".lane[data-lane]")];
  const strips = [...document.querySelectorAll(".lanes svg")];
  const shown = document.getElementById("shown"), hits = document.getElementById("hits");
  const WIDTH = 7;
  document.documentElement.classList.add("js");
  document.querySelector(".tools").hidden = false;

  const ticks = known.lanes.map((numbers) => {
    const found = [];
    for (let k = 0; k < numbers.length; k += WIDTH) {
      const [at, kind, op, attribute, stack, before, after] = numbers.slice(k, k + WIDTH);
      found.push({ at, kind: kind & 3, bad: kind > 3, op: known.words[op],
        attribute: known.words[attribute], before, after,
        frames: known.stacks[stack].map((index) => known.frames[index]) });
    }
    return found;
  });

  // --- the part of the row that is seen ---
  const margin = (known.end - known.first) * 0.01 + 0.5;
  let from = known.first - margin, to = known.end + margin;
  const look = (a, b) => {
    const least = known.first - margin, most = known.end + margin;
    const width = Math.min(Math.max(b - a, 8), most - least);
    from = Math.min(Math.max(a, least), most - width);
    to = from + width;
    for (const strip of strips) strip.setAttribute("viewBox", `${from} 0 ${width} 20`);
  };
  const zoom = (by, around) => by === 0 ? look(-Infinity, Infinity)
    : look(around - (around - from) * by, around + (to - around) * by);
  document.querySelector(".tools").addEventListener("click", (event) => {
    const { zoom: by, move } = event.target.dataset;
    if (by !== undefined) zoom(Number(by), chosen ? ticks[chosen[0]][chosen[1]].at : (from + to) / 2);
    if (move !== undefined) look(from + move * (to - from) / 2, to + move * (to - from) / 2);
  });
  document.querySelector(".lanes").addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const strip = event.target.closest("svg");
    const box = (strip || strips[0]).getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, from + (event.clientX - box.left) / box.width * (to - from));
  }, { passive: false });

  // --- one tick ---
  let chosen = null;
  const element = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  };
  const words = (tick) => [
    `${tick.op} writes: version ${tick.before} to ${tick.after}`,
    `${tick.op} saves it as ${tick.attribute}, at version ${tick.before}`,
    `${tick.op} uses ${tick.attribute}: saved at version ${tick.before}, now ${tick.after}`,
  ][tick.kind];
  const choose = (lane, index) => {
    document.querySelectorAll("path.sel").forEach((path) => path.remove());
    const tick = ticks[lane][index];
    chosen = [lane, index];
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", "sel");
    path.setAttribute("d", `M${tick.at} 0v20`);
    lanes[lane].querySelector("svg").append(path);
    if (tick.at < from || tick.at > to) look(tick.at - (to - from) / 2, tick.at + (to - from) / 2);
    const title = element("b", lanes[lane].querySelector(".name").textContent);
    const what = element("p", words(tick) + (tick.bad ? " (of a fault)" : ""));
    if (tick.bad) what.className = "x";
    const list = document.createElement("ol");
    for (const [place, name, code, file] of tick.frames) {
      const item = element("li", `${place} in ${name} `);
      item.title = file;
      item.append(element("code", code));
      list.append(item);
    }
    shown.replaceChildren(title, what, list);
    if (!tick.frames.length) shown.append(element("p", "no Python line is known of it"));
    shown.hidden = false;
  };
  const nearest = (lane, at) => {
    let best = 0;
    ticks[lane].forEach((tick, index) => {
      if (Math.abs(tick.at - at) < Math.abs(ticks[lane][best].at - at)) best = index;
    });
    return best;
  };
  lanes.forEach((lane, number) => {
    const strip = lane.querySelector("svg");
    strip.tabIndex = 0;
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      choose(number, nearest(number, from + (event.clientX - box.left) / box.width * (to - from)));
    });
    strip.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Enter: 0 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const at = chosen && chosen[0] === number ? chosen[1] + step : 0;
      choose(number, Math.min(Math.max(at, 0), ticks[number].length - 1));
    });
  });

  // --- search ---
  const search = document.getElementById("search");
  const names = lanes.map((lane) => lane.querySelector(".name").textContent.toLowerCase());
  const text = (tick) => [words(tick), ...tick.frames.map((frame) => frame.join(" "))]
    .join(" ").toLowerCase();
  let found = [], next = 0;
  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    found = [];
    lanes.forEach((lane, number) => {
      const is_named = names[number].includes(wanted);
      let any = is_named;
      ticks[number].forEach((tick, index) => {
        if (wanted && (is_named || text(tick).includes(wanted))) {
          found.push([number, index]);
          any = true;
        }
      });
      lane.classList.toggle("off", !any);
    });
    next = 0;
    hits.textContent = wanted ? `${found.length} ticks` : "";
  };
  search.addEventListener("input", find);
  document.querySelector(".tools").addEventListener("submit", (event) => {
    event.preventDefault();
    if (found.length) choose(...found[next++ % found.length]);
  });
})();
