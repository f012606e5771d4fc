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
  // Gradio makes the fields of a closed accordion when it is opened, and sets back what is typed meanwhile: so it comes
  // open, unseen (page.css), and is closed when its fields are there.
  new MutationObserver((_, observer) => {
    const settings = document.querySelector("#settings");
    if (!settings?.querySelector("#max_tokens input")) return;
    observer.disconnect();
    settings.querySelector("button").click();
    settings.classList.add("lab3-made");
  }).observe(document, { childList: true, subtree: true });
})();
