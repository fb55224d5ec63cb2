// What can be typed into the Dataset tab's find field: words, "phrases", tag:x, folder:x, is:x, tokens:>75; a minus denies.
(() => {
  "use strict";
  const { studio } = window.safelight;

  const tags_of = (caption) => caption.split(",").map((tag) => tag.trim().toLowerCase()).filter(Boolean);

  /** Everything that is wrong with a picture, as sentences: its own faults first, then what the quality report found. */
  studio.problems_of = (row) => {
    const found = [row.fault, row.caption_fault].filter(Boolean);
    if (!row.fault && row.enlarged > 1.01) found.push(`small: enlarged ${row.enlarged.toFixed(1)}× for training`);
    if (row.tokens > studio.max_tokens()) found.push(`${row.tokens} tokens: what comes after ${studio.max_tokens()} is cut off`);
    return [...found, ...(studio.problems.get(row.name) || [])];
  };

  const IS = {
    __proto__: null, // of these words only: "is:constructor" is none of them
    tagged: (row) => row.caption !== "",
    untagged: (row) => row.caption === "",
    selected: (row) => studio.selection.has(row.name),
    problem: (row) => studio.problems_of(row).length > 0,
    small: (row) => row.enlarged > 1.01,
    long: (row) => row.tokens > studio.max_tokens(),
    unreadable: (row) => Boolean(row.fault || row.caption_fault),
    cropped: (row) => Boolean(row.mark),
    masked: (row) => row.mask,
    animated: (row) => row.frames > 1,
    transparent: (row) => Boolean(row.alpha),
    portrait: (row) => row.height > row.width,
    landscape: (row) => row.width > row.height,
    square: (row) => row.width > 0 && row.width === row.height,
  };

  const NUMBERS = {
    __proto__: null,
    tokens: (row) => row.tokens,
    tags: (row) => tags_of(row.caption).length,
    width: (row) => row.width || 0,
    height: (row) => row.height || 0,
    kb: (row) => row.bytes / 1024,
  };

  const COMPARE = {
    ">": (one, other) => one > other,
    ">=": (one, other) => one >= other,
    "<": (one, other) => one < other,
    "<=": (one, other) => one <= other,
    "=": (one, other) => one === other,
  };

  const folder_of = (name) => (name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "");

  const TEXTS = {
    __proto__: null,
    tag: (text) => {
      const wanted = text.toLowerCase();
      return (row) => tags_of(row.caption).includes(wanted);
    },
    folder: (text) => {
      const wanted = text.toLowerCase().replace(/\/$/, "");
      return (row) => {
        const folder = folder_of(row.name).toLowerCase();
        return folder === wanted || (wanted !== "" && folder.startsWith(`${wanted}/`));
      };
    },
    name: (text) => (row) => row.name.toLowerCase().includes(text.toLowerCase()),
    caption: (text) => (row) => row.caption.toLowerCase().includes(text.toLowerCase()),
  };

  /** One condition of the field; a function of a row, or a sentence that says what is wrong with it. */
  function condition(key, text) {
    if (!key) {
      const wanted = text.toLowerCase();
      return (row) => row.name.toLowerCase().includes(wanted) || row.caption.toLowerCase().includes(wanted);
    }
    if (key === "is") return IS[text] || `There is no is:${text}. There are: ${Object.keys(IS).join(", ")}.`;
    if (key in TEXTS) return TEXTS[key](text);
    const found = /^(>=|<=|>|<|=)?(\d+(?:\.\d+)?)$/.exec(text);
    if (!found) return `${key}: takes a number, as in ${key}:>75.`;
    return (row) => COMPARE[found[1] || "="](NUMBERS[key](row), Number(found[2]));
  }

  const KNOWN = new RegExp(`^(is|${[...Object.keys(TEXTS), ...Object.keys(NUMBERS)].join("|")}):$`, "i");
  const PART = /(-?)(?:(\w+):)?(?:"([^"]*)"?|(\S+))/g;

  /** A test for rows, and what was not understood. Parts are joined by "and". */
  studio.filter = (typed) => {
    const tests = [];
    const faults = [];
    for (const [whole, minus, word, quoted, plain] of typed.trim().matchAll(PART)) {
      let key = (word || "").toLowerCase();
      let text = quoted ?? plain;
      if (key && !(key === "is" || key in TEXTS || key in NUMBERS)) {
        text = whole.slice(minus.length).replaceAll('"', ""); // an unknown word before a colon is text, as in "score:9"
        key = "";
      }
      if (!key && !quoted && KNOWN.test(text)) continue; // "tag:" on its own: somebody is about to type on
      const test = condition(key, text);
      if (typeof test === "string") faults.push(test);
      else if (text || key === "folder") tests.push(minus ? (row) => !test(row) : test);
    }
    return { test: (row) => tests.every((test) => test(row)), fault: faults[0] || "" };
  };

  studio.FILTER_HELP = [
    ["red dress", "both words in the caption or the file name"],
    ['"red dress"', "these words one after the other"],
    ["tag:1girl", 'this whole tag; tag:"long hair" for one with spaces'],
    ["-tag:smile", "a minus in front: pictures that don't have it"],
    ["folder:10_mira", "pictures of a sub-folder; folder:\"\" are those of none"],
    ["is:untagged", `also ${Object.keys(IS).filter((word) => word !== "untagged").join(", ")}`],
    ["tokens:>75", "also tags, width, height, kb; with >, >=, <, <= or ="],
  ];

  const by_name = new Intl.Collator("en", { numeric: true });
  const names = (one, other) => by_name.compare(one.name, other.name);

  studio.SORTS = {
    name: ["Name", names],
    problems: ["Problems first", (one, other) => studio.problems_of(other).length - studio.problems_of(one).length || names(one, other)],
    small: ["Smallest first", (one, other) => (one.width || 0) * (one.height || 0) - (other.width || 0) * (other.height || 0) || names(one, other)],
    large: ["Largest first", (one, other) => (other.width || 0) * (other.height || 0) - (one.width || 0) * (one.height || 0) || names(one, other)],
    tokens: ["Longest caption first", (one, other) => other.tokens - one.tokens || names(one, other)],
    short: ["Shortest caption first", (one, other) => one.tokens - other.tokens || names(one, other)],
    time: ["Newest first", (one, other) => other.time - one.time || names(one, other)],
  };
})();
