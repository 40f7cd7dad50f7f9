// How the search ranks what it found: Sphinx's own numbers, and what a reader asks for first goes
// first. Without it equal scores stand in alphabetical order, the names of functions above all pages.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score: ([page, , , , score]) =>
    score
    - 10 * /^(generated\/captum_clip|beside|structure|contributing)/.test(page)
    - 3 * /^(claims|embedded|findings|robustness|right_map|shortcut|tutorials)/.test(page),
};
