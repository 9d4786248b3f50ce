"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const palette = JSON.parse(document.getElementById("palette").textContent);

function draw(plot, night) {
  let text = document.getElementById(plot.id + "-data").textContent;
  if (night) for (const [light, replacement] of Object.entries(palette)) text = text.replaceAll(light, replacement);
  const { data, layout } = JSON.parse(text);
  Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
}

const plots = [...document.querySelectorAll(".plot")];
const drawn = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    drawn.add(target);
    draw(target, dark.matches);
  }
}, { rootMargin: "600px" });
plots.forEach((plot) => observer.observe(plot));
dark.addEventListener("change", () => drawn.forEach((plot) => draw(plot, dark.matches)));
addEventListener("beforeprint", () => plots.forEach((plot) => draw(plot, false)));
addEventListener("afterprint", () => plots.forEach((plot) => draw(plot, dark.matches)));
