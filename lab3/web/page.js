(() => {
  document.documentElement.lang = "LAB3_LANGUAGE";
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;  // while a Chinese word is written, it ends that
    const shown = [...document.querySelectorAll("button.lab3-stop")].find((each) => !each.disabled && each.offsetParent);
    if (shown) { event.preventDefault(); shown.click(); }
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest("#language")) document.documentElement.lang = event.target.value;
  });
})();
