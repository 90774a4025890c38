// pymdownx.arithmatex wraps formulas in \( \) and \[ \]; MathJax renders those alone.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: true },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};
document$.subscribe(() => MathJax.startup?.promise.then(() => MathJax.typesetPromise()));
