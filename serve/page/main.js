// Puts the page together: what the user does, and one answer at a time.

import { Announcer } from "./announcer.js";
import * as api from "./api.js";
import { Conversation } from "./conversation.js";
import { at } from "./dom.js";
import { Failure } from "./failure.js";
import { showIdentity } from "./identity.js";
import { Load } from "./load.js";
import { Meter } from "./meter.js";
import { Panel } from "./panel.js";
import { Scroll } from "./scroll.js";
import { Settings } from "./settings.js";
import { View } from "./view.js";

const SAVE_EVERY_MS = 1000;

const conversation = new Conversation();
const settings = new Settings();
const scroll = new Scroll();
const announcer = new Announcer();
const load = new Load();
const panel = new Panel((open) => load.watch(open));
const view = new View({ retry, edit });
const question = at("question");
let running = null; // the AbortController of the answer that is coming

async function run(exchange) {
  const { answer } = exchange;
  const control = new AbortController();
  const meter = new Meter();
  running = control;
  announcer.say("Asked.");
  view.showAll(conversation.exchanges);
  scroll.toEnd();
  showState();
  let saved = performance.now();
  let frame = 0;
  const paint = () => {
    frame = 0;
    if (!conversation.exchanges.includes(exchange)) return;
    answer.stats = meter.stats;
    announcer.follow(view.show(exchange, true), false);
    scroll.follow();
  };
  try {
    const request = { messages: conversation.messages(settings.system), ...settings.fields };
    for await (const piece of api.chat(request, control.signal)) {
      if (piece.text) {
        meter.piece();
        answer.text += piece.text;
        frame ||= requestAnimationFrame(paint);
      }
      if (piece.finish) answer.finish = piece.finish;
      if (piece.usage) meter.count(piece.usage);
      if (performance.now() - saved > SAVE_EVERY_MS) {
        conversation.save();
        saved = performance.now();
      }
    }
    answer.state = "done";
  } catch (error) {
    finishEarly(answer, error, control.signal);
  }
  cancelAnimationFrame(frame);
  if (running === control) running = null;
  answer.stats = meter.stats;
  conversation.save();
  showState();
  if (!conversation.exchanges.includes(exchange)) return; // a new conversation was begun
  view.showAll(conversation.exchanges);
  announcer.follow(view.show(exchange, true), true);
  scroll.follow();
}

function finishEarly(answer, error, signal) {
  if (signal.aborted) {
    answer.state = "stopped";
    return;
  }
  const failure = error instanceof Failure ? error : new Failure(-1, String(error));
  answer.state = "failed";
  answer.failure = { ...failure.words, at: Date.now() };
  if (failure.status === 0 || failure.status === 503) showIdentity();
}

function showState() {
  const had = document.activeElement;
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  if (had === at("send") || had === at("stop") || had === document.body) question.focus();
}

function send() {
  const prompt = question.value;
  if (running || !prompt.trim()) return;
  if (!settings.valid) {
    panel.set(true);
    settings.complain();
    return;
  }
  question.value = "";
  fit();
  run(conversation.ask(prompt));
}

function stop() {
  running?.abort();
}

function retry() {
  if (!running) run(conversation.askAgain());
}

function edit() {
  if (running) return;
  question.value = conversation.takeBack();
  view.showAll(conversation.exchanges);
  fit();
  question.focus();
}

/** As high as its text. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => {
  stop();
  conversation.clear();
  view.showAll([]);
  question.focus();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("key").open) return;
  if (running) stop();
  else if (panel.covers) {
    panel.set(false);
    at("panel-toggle").focus();
  }
});
addEventListener("pagehide", () => {
  if (!running) return; // all is saved, and another tab may have saved since
  stop(); // the browser ends the request anyway, and would call it a lost connection
  conversation.save();
});

view.showAll(conversation.exchanges);
scroll.toEnd();
showIdentity();
if (!panel.covers) question.focus();
