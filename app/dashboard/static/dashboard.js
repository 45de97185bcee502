// What the pages do beyond showing: follow the feed, move an entity's slider, keep the overview fresh.
// Everything here adds to pages that work without it. Rows come rendered and escaped from the server.

const MOST_ROWS = 200;
const LONGEST_WAIT = 30_000;
const REFRESH = 10_000;
const LONGEST_LOOK = 9_000;

function followFeed(list) {
  const status = document.querySelector("[data-feed-status]");
  const toggle = document.querySelector("[data-feed-toggle]");
  const empty = document.querySelector("[data-feed-empty]");
  let position = list.dataset.after;
  let source = null;
  let wait = 1000;
  let timer = 0;

  function say(words, mark) {
    if (status.textContent !== words) status.textContent = words;
    status.classList.toggle("is-live", mark === "live");
    status.classList.toggle("is-lost", mark === "lost");
  }

  function open() {
    const address = new URL(list.dataset.stream, location.href);
    address.searchParams.set("after", position);
    source = new EventSource(address);
    source.addEventListener("position", (event) => {
      position = event.data;
      wait = 1000;
      say("Live", "live");
    });
    source.addEventListener("row", (event) => {
      const holder = document.createElement("template");
      holder.innerHTML = JSON.parse(event.data);
      const row = holder.content.querySelector("li");
      row.classList.add("is-new");
      list.prepend(row);
      empty.hidden = true;
      while (list.children.length > MOST_ROWS) list.lastElementChild.remove();
    });
    source.addEventListener("error", () => {
      say("Reconnecting …", "lost");
      // The browser comes back by itself, unless the answer was no stream: a restart, or a session that is over.
      if (source.readyState === EventSource.CLOSED) {
        timer = setTimeout(open, wait);
        wait = Math.min(2 * wait, LONGEST_WAIT);
      }
    });
  }

  function close() {
    clearTimeout(timer);
    source.close();
    source = null;
  }

  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    if (source) {
      close();
      say("Paused", "");
      toggle.textContent = "Resume";
    } else {
      say("Connecting …", "");
      open();
      toggle.textContent = "Pause";
    }
  });
  say("Connecting …", "");
  open();
}

// A part of a page as it is now; throws where the receiver does not give it. Where the page comes without the part, the session
// is over: the page that comes instead is the one to see.
async function partOf(address, selector) {
  const response = await fetch(address, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(LONGEST_LOOK) });
  if (!response.ok) throw new Error(`answered with ${response.status}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const part = page.querySelector(selector);
  if (!part) location.reload();
  return part;
}

function moveSlider(form) {
  const slider = form.querySelector("input[type=range]");
  const positions = [...form.querySelectorAll("option")];
  const shown = document.querySelector("[data-state]");
  let asked = 0;

  function tell() {
    slider.setAttribute("aria-valuetext", positions[slider.value].label);
  }

  slider.hidden = false;
  tell();
  slider.addEventListener("input", async () => {
    tell();
    const mine = ++asked;
    const address = new URL(location.href);
    address.searchParams.set("as_of", positions[slider.value].dataset.sequence);
    const part = await partOf(address, "[data-state]").catch(() => null);
    if (part && mine === asked) {
      shown.replaceChildren(...part.childNodes);
      history.replaceState(null, "", address);
    }
  });
}

function keepFresh(part, toggle, status) {
  let isPaused = false;
  let updated = new Date();
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    isPaused = !isPaused;
    toggle.setAttribute("aria-pressed", String(isPaused));
  });
  setInterval(async () => {
    const isBusy = part.contains(document.activeElement) || part.querySelector("details[open]");
    if (isPaused || isBusy || document.hidden) return;
    try {
      const fresh = await partOf(location.href, "[data-live]");
      if (!fresh) return;
      part.replaceChildren(...fresh.childNodes);
      updated = new Date();
      status.textContent = "";
    } catch {
      // The receiver is away, and the next look may find it; until then nobody may take what is shown for what is so.
      const words = `Not updated since ${updated.toISOString().slice(11, 19)} UTC`;
      if (status.textContent !== words) status.textContent = words;
    }
  }, REFRESH);
}

const feed = document.querySelector("[data-feed][data-stream]");
if (feed) followFeed(feed);
const slider = document.querySelector("[data-slider]");
if (slider) moveSlider(slider);
const live = document.querySelector("[data-live]");
if (live) keepFresh(live, document.querySelector("[data-refresh]"), document.querySelector("[data-refresh-status]"));
