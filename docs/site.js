"use strict";
// What scrolls by itself can be scrolled by keyboard, too, and the search has a name.
const reach = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const each of document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap")) each.tabIndex = 0;
};
document.addEventListener("DOMContentLoaded", reach);
window.addEventListener("load", reach);
