// A completion, or a chat, streamed into the page as it is generated.
import { stream, KeyNeeded } from "./api.js";
import { $, make, milliseconds, say, significant } from "./charts.js";

const START = { completion: "Once upon a time there was", chat: "Tell me a story about a fox." };

let running = null; // the AbortController of the answer under way
let messages = []; // of the chat so far
let askForKey = () => {};

const mode = () => document.querySelector("input[name=mode]:checked").value;

function sampling() {
  const body = {
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    top_p: $("top-p").valueAsNumber,
  };
  if ($("seed").value !== "") body.seed = $("seed").valueAsNumber;
  return body;
}

// Keeps the end of the answer in sight, unless the reader has scrolled up.
function follow(change) {
  const box = $("answer");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

// -> where the answer goes: two elements, of the reasoning and of the text
function openAnswer(chat, prompt) {
  const box = $("answer");
  const thought = make("p", "thought");
  const text = make(chat ? "p" : "span", "said");
  thought.hidden = true;
  if (chat) {
    box.append(make("p", "asked", prompt), thought, text);
    box.scrollTop = box.scrollHeight;
  } else {
    box.replaceChildren(make("p", "", make("span", "given", prompt), text));
  }
  return { thought, text };
}

function setRunning(controller) {
  const had = document.activeElement;
  running = controller;
  $("send").disabled = controller !== null;
  $("stop").disabled = controller === null;
  // The focus goes from one button to the other: a disabled one loses it.
  if (had === $("send") || had === $("stop")) (controller ? $("stop") : $("send")).focus();
  $("answer").setAttribute("aria-busy", String(controller !== null));
}

async function generate() {
  if (running) return;
  const chat = mode() === "chat";
  const prompt = $("prompt").value;
  if (chat && !prompt.trim()) return;
  const controller = new AbortController();
  setRunning(controller);
  const place = openAnswer(chat, prompt);
  const asked = { role: "user", content: prompt };
  const path = chat ? "v1/chat/completions" : "v1/completions";
  const body = chat ? { messages: [...messages, asked] } : { prompt };
  const begin = performance.now();
  let first = null;
  let tokens = 0;
  let said = "";
  let reason = "";
  const note = () => {
    const seconds = (performance.now() - (first ?? begin)) / 1e3;
    const rate = tokens > 1 && seconds > 0 ? ` · ${significant((tokens - 1) / seconds)} tokens/s` : "";
    const wait = first === null ? "" : ` · first after ${milliseconds((first - begin) / 1e3)}`;
    say($("answer-note"), `${tokens} tokens${wait}${rate}${reason && ` · ${reason}`}`);
  };
  say($("answer-note"), "waiting");
  $("answer-note").classList.remove("bad");
  try {
    for await (const event of stream(path, { ...body, ...sampling() }, controller.signal)) {
      if (event.usage) tokens = event.usage.completion_tokens;
      const choice = event.choices[0];
      if (!choice) continue;
      const text = choice.text ?? choice.delta?.content ?? "";
      const thought = choice.delta?.reasoning_content ?? "";
      if (choice.finish_reason) reason = { stop: "ended", length: "cut at its length" }[choice.finish_reason] ?? choice.finish_reason;
      if (text || thought) {
        first ??= performance.now();
        tokens += 1;
        said += text;
        follow(() => {
          if (thought) place.thought.hidden = false;
          place.thought.append(thought);
          place.text.append(text);
        });
      }
      note();
    }
    note();
    if (chat) {
      messages.push(asked, { role: "assistant", content: said });
      $("prompt").value = "";
    }
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey();
    reason = error.name === "AbortError" ? "stopped" : error instanceof KeyNeeded ? "needs an API key" : error.message;
    if (first !== null) note();
    else say($("answer-note"), reason);
    $("answer-note").classList.toggle("bad", error.name !== "AbortError");
  } finally {
    setRunning(null);
  }
}

function clear() {
  running?.abort();
  messages = [];
  $("answer").replaceChildren();
  say($("answer-note"), "");
}

export function startPlayground(onKeyNeeded) {
  askForKey = onKeyNeeded;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  $("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("clear").addEventListener("click", clear);
  for (const radio of document.querySelectorAll("input[name=mode]"))
    radio.addEventListener("change", () => {
      clear();
      say($("prompt-label"), mode() === "chat" ? "Message" : "Prompt");
      say($("send"), mode() === "chat" ? "Send" : "Generate");
      $("prompt").value = START[mode()];
    });
}
