// Connects the deep-chat component to the endpoint that serves this page. The conversation lives in this tab only.

const place = document.getElementById("place");
const ROLLOUT_EVERY_MS = 3000;
const access = document.getElementById("access");
let headers = {};
let model = null;
let watching = false;
let talk = []; // what the endpoint is sent: turns that were answered, and the one being asked

access.addEventListener("submit", (event) => {
  event.preventDefault();
  headers = { authorization: `Bearer ${encoded(document.getElementById("key").value)}` };
  open();
});

// A header takes bytes only: a key in another script is sent as its UTF-8 bytes, of which the endpoint knows the digest.
function encoded(key) {
  return String.fromCharCode(...new TextEncoder().encode(key.trim()));
}

async function open() {
  const answer = await fetch("v1/models", { headers });
  access.hidden = answer.status !== 401;
  const body = await answer.json();
  document.getElementById("model").textContent = answer.ok ? body.data[0].id : body.error.message;
  if (!answer.ok) return;
  [model] = body.data;
  describe(factsOf(model));
  place.replaceChildren(newChat());
  watchRollout();
}

// Says where a new release stands, as long as this tab is open. Only an endpoint that rolls releases in has the route.
async function watchRollout() {
  if (watching) return;
  watching = true;
  const api = await (await fetch("openapi.json", { headers })).json();
  while (api.paths?.["/rollout"]) {
    const answer = await fetch("rollout", { headers }).catch(() => null);
    if (answer?.ok) showRollout(await answer.json());
    await new Promise((resolve) => setTimeout(resolve, ROLLOUT_EVERY_MS));
  }
}

function showRollout({ phase, candidate, weights, paused, reason, refused }) {
  const line = document.getElementById("rollout");
  const undone = Object.entries(refused).at(-1);
  const share = candidate ? ` (${(100 * (weights[candidate] ?? 0)).toFixed(0)} % of the traffic)` : "";
  const parts = [];
  if (candidate) parts.push(`rolling in ${candidate}: ${phase}${share}${paused ? ", paused" : ""}`, reason);
  else if (undone) parts.push(`last release undone: ${undone[0]}`, undone[1]);
  line.textContent = parts.filter(Boolean).join(" · ");
  line.hidden = !line.textContent;
}

// What a visitor may want to know of a model, in plain words; the whole lineage is at v1/models.
function factsOf({ release, version, created, lineage, scores }) {
  const facts = {
    release: `${release} ${version}`,
    published: new Date(created * 1000).toLocaleDateString(undefined, { dateStyle: "medium" }),
    "trained in run": lineage.run,
    "at step": lineage.step ?? lineage.checkpoint_step,
    "trained on": Object.keys(lineage.datasets ?? {}).join(", ") || lineage.dataset,
  };
  for (const [name, score] of Object.entries(scores)) {
    if (typeof score !== "number") continue;
    facts[name.replaceAll("_", " ")] = score >= 0 && score <= 1 ? `${(100 * score).toFixed(1)} %` : String(score);
  }
  return facts;
}

function describe(facts) {
  const rows = Object.entries(facts)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => {
      const row = document.createElement("div");
      row.append(element("dt", name), element("dd", value));
      return row;
    });
  document.getElementById("lineage").replaceChildren(...rows);
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function newChat() {
  talk = [];
  const chat = document.createElement("deep-chat");
  // Its own font would be fetched from elsewhere, so it is given one.
  Object.assign(chat.style, { display: "block", width: "auto", height: "100%", borderRadius: "0.5rem" });
  chat.style.fontFamily = "system-ui";
  chat.images = { files: { maxNumberOfFiles: 8, acceptedFormats: ".png,.jpg,.jpeg,.webp,.gif,.bmp" } };
  chat.dragAndDrop = true;
  chat.textInput = { placeholder: { text: "Drop an image and ask about it" } };
  const failed = { backgroundColor: "#f9dcdc", color: "#8c1010" };
  chat.messageStyles = { default: { failure: { bubble: failed } } };
  chat.connect = { stream: true, handler: (body, signals) => ask(body, signals) };
  return chat;
}

async function ask(body, signals) {
  const leaving = new AbortController();
  signals.stopClicked.listener = () => leaving.abort();
  const turn = { role: "user", content: await contentOf(body) };
  let told = "";
  let failure = null;
  signals.onOpen();
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify({ model: model.id, messages: [...talk, turn], stream: true, temperature: 0 }),
      signal: leaving.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const chunk of events(answer.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices[0]?.delta.content ?? "";
      told += text;
      if (text) await signals.onResponse({ text });
    }
    talk.push(turn, { role: "assistant", content: told });
  } catch (error) {
    // A turn without its answer is forgotten: the next question must not follow it.
    if (error.name !== "AbortError") failure = error.message;
  }
  if (!told) await signals.onResponse({ text: "(no answer)" }); // the component cannot end a stream without text
  signals.onClose();
  // Not as the component's own kind of error: it would take the images back into the input, over the message.
  if (failure) place.firstElementChild.addMessage({ role: "failure", text: failure });
}

// deep-chat gives JSON, or a form where there are files.
async function contentOf(body) {
  if (!(body instanceof FormData)) return body.messages.at(-1).text;
  const text = body.has("message1") ? JSON.parse(body.get("message1")).text : undefined;
  const urls = await Promise.all(body.getAll("files").map(dataUrl));
  const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function* events(stream) {
  let rest = "";
  for await (const text of texts(stream)) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function* texts(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

open();
