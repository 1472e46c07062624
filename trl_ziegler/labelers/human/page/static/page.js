// Keys and the time of an answer. Without this file everything works by mouse, and the server measures the time.
"use strict";

// A key pressed while the page before was still there must not answer a comparison nobody has seen.
const SETTLING_MS = 250;
const shown = performance.now();
let sent = false;

for (const form of document.querySelectorAll("form[data-timed]")) {
  form.addEventListener("submit", (event) => {
    if (sent) {
      event.preventDefault();
      return;
    }
    sent = true;
    const seconds = form.elements.namedItem("seconds");
    if (seconds) seconds.value = ((performance.now() - shown) / 1000).toFixed(3);
  });
}

for (const panel of document.querySelectorAll(".acts details")) {
  panel.querySelector("summary").addEventListener("click", (event) => {
    event.preventDefault();
    if (panel.open) closePanel(panel);
    else openPanel(panel);
  });
}

function pressed(event) {
  // Where digits need the shift key, `key` is another sign and `code` still names the digit.
  const digit = /^Digit([0-9])$/.exec(event.code);
  return digit && !event.shiftKey ? digit[1] : event.key.toLowerCase();
}

// At once, not on the later event `toggle`: the next letter typed belongs into the text.
function openPanel(panel) {
  panel.open = true;
  panel.querySelector("textarea").focus();
}

function closePanel(panel) {
  panel.open = false;
  panel.querySelector("summary").focus();
}

document.addEventListener("keydown", (event) => {
  const panel = event.target.closest(".acts details[open]");
  if (event.key === "Escape" && panel) closePanel(panel);
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target.closest("textarea, input") || performance.now() - shown < SETTLING_MS) return;
  const target = document.querySelector(`[data-key="${CSS.escape(pressed(event))}"]`);
  if (!target || target.disabled) return;
  event.preventDefault();
  if (target.tagName === "DETAILS") openPanel(target);
  else target.form.requestSubmit(target);
});

// While there is nothing to label the page looks again, unless somebody is writing on it.
const waiting = document.getElementById("waiting");
if (waiting) {
  setInterval(() => {
    if (!document.querySelector(".acts details[open]")) location.reload();
  }, 1000 * Number(waiting.dataset.seconds));
}

// A page out of the browser's memory is an old one.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

setTimeout(() => { document.documentElement.dataset.keys = "ready"; }, SETTLING_MS);
