// Keys, the time of an answer, and patience with a server that is away. Without this file everything works by mouse, the
// server measures the time, and the browser says what it cannot reach.
"use strict";

// A key pressed while the page before was still there must not answer a comparison nobody has seen.
const SETTLING_MS = 250;
const RETRY_MS = 2000;
const LONGEST_MS = 40_000;  // the server waits for its database for 30 seconds
const shown = performance.now();
const ICON = document.querySelector("link[rel=icon]").href;  // small, and asking for it changes nothing
let sent = false;
let unsent = false;

for (const form of document.querySelectorAll("form[data-kept]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (sent) return;
    sent = true;
    const seconds = form.elements.namedItem("seconds");
    if (seconds) seconds.value = ((performance.now() - shown) / 1000).toFixed(3);
    const body = new URLSearchParams(new FormData(form));
    if (event.submitter && event.submitter.name) body.append(event.submitter.name, event.submitter.value);
    deliver(form, body);
  });
}

// Until the server has it. An undo is sent once: whether it arrived, the page of the server that is back shows.
async function deliver(form, body) {
  const post = () => ask(form.action, { method: "POST", body, redirect: "manual" });
  const again = form.dataset.kept === "once" ? () => ask(ICON) : post;
  let reply = await post();
  while (!reply) {
    say(true);
    await new Promise((wake) => { setTimeout(wake, RETRY_MS); });
    reply = await again();
  }
  say(false);
  if (reply.status < 400) location.replace(location.pathname);  // 0, a redirect: to the next page
  else document.body = new DOMParser().parseFromString(await reply.text(), "text/html").body;
}

// The reply; none if the server, or the one behind a proxy, is away.
async function ask(address, options = {}) {
  try {
    const reply = await fetch(address, { ...options, signal: AbortSignal.timeout(LONGEST_MS) });
    return reply.status < 500 ? reply : undefined;
  } catch {
    return undefined;
  }
}

function say(away) {
  unsent = away;
  document.getElementById("away").hidden = !away;
}

window.addEventListener("beforeunload", (event) => {
  if (unsent) event.preventDefault();
});

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

// A click on a text chooses it, unless it selects some of it, or ends such a selection.
let selecting = false;
document.addEventListener("mousedown", () => { selecting = !getSelection().isCollapsed; });
for (const text of document.querySelectorAll(".choices .completion")) {
  text.addEventListener("click", () => {
    if (selecting || !getSelection().isCollapsed || performance.now() - shown < SETTLING_MS) return;
    text.closest("li").querySelector("button").click();
  });
}

// While there is nothing to label the page looks again, unless somebody is writing on it.
const waiting = document.getElementById("waiting");
if (waiting) {
  setInterval(async () => {
    if (!sent && (await ask(ICON)) && !document.querySelector(".acts details[open]")) location.reload();
  }, 1000 * Number(waiting.dataset.seconds));
}

// A page out of the browser's memory is an old one.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

setTimeout(() => { document.documentElement.dataset.keys = "ready"; }, SETTLING_MS);
