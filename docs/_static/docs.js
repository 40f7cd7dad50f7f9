// What keyboards and screen readers need and the theme lacks: boxes that scroll take the focus, headings of
// the side bar have a level, and its two sides have names.
const reachable = () => {
  for (const box of document.querySelectorAll("pre, .table-wrapper, div.math, p:has(> img)"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
};
addEventListener("resize", reachable);
addEventListener("load", reachable);
addEventListener("DOMContentLoaded", () => {
  for (const heading of document.querySelectorAll(".caption[role=heading]")) heading.ariaLevel = "2";
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
});
