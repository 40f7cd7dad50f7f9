// How the search ranks pages: by how many of the words a page has (BM25), not only where all are, as
// Sphinx does. A word counts most in a page's title or among its index words, less in a heading, least in
// the text. A word that no page has is looked for by its beginning.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  score: ([page, , , , score]) => score * Scorer.rank(page),
  rank: (page) =>
    /^beside\/changelog/.test(page) ? 0.2
      : /^(generated\/captum_clip|beside|contributing)/.test(page) ? 0.5
      : /^(tutorials|generated)/.test(page) ? 0.7 : 1,
  weights: { text: 1, heading: 2, index: 3, title: 4 },
};

function readIndex() {
  const stemmer = new Stemmer();
  const { terms, titleterms, titles, indexentries } = Search._index;
  const pages = new Map(); // word -> page -> weight
  const lengths = titles.map(() => 0); // different words of a page
  const add = (word, page, weight) => {
    if (!pages.has(word)) pages.set(word, new Map());
    const weights = pages.get(word);
    weights.set(page, Math.max(weight, weights.get(page) ?? 0));
  };
  const each = (lists, weight) =>
    Object.entries(lists).forEach(([word, list]) =>
      [list].flat().forEach((page) => add(word, page, weight)));
  const stems = (text) => splitQuery(text.toLowerCase()).map((word) => stemmer.stemWord(word));
  each(terms, Scorer.weights.text);
  each(titleterms, Scorer.weights.heading);
  titles.forEach((title, page) => stems(title).forEach((w) => add(w, page, Scorer.weights.title)));
  Object.entries(indexentries).forEach(([entry, list]) =>
    list.filter(([, , main]) => main).forEach(([page]) =>
      stems(entry).forEach((word) => add(word, page, Scorer.weights.index))));
  pages.forEach((weights) => weights.forEach((_, page) => lengths[page]++));
  const mean = lengths.reduce((a, b) => a + b) / lengths.length;
  return { pages, lengths: lengths.map((length) => length / mean) };
}

function anyWord(words) {
  const { docnames, titles, filenames } = Search._index;
  const { pages, lengths } = (Search.words ??= readIndex());
  const scores = new Map();
  for (let word of words) {
    while (!pages.has(word) && word.length > 4) {
      const start = word;
      word = [...pages.keys()].find((other) => other.startsWith(start)) ?? word.slice(0, -1);
    }
    const weights = pages.get(word) ?? new Map();
    const rarity = Math.log(1 + docnames.length / weights.size);
    weights.forEach((weight, page) =>
      scores.set(page, (scores.get(page) ?? 0)
        + rarity * weight / (weight + 1.2 * (0.25 + 0.75 * lengths[page]))));
  }
  return [...scores].map(([page, score]) =>
    [docnames[page], titles[page], "", null, score, filenames[page], SearchResultKind.text]);
}

document.addEventListener("DOMContentLoaded", () => (Search.performTermsSearch = anyWord));
