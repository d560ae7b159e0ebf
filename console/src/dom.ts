// Elements by one call. Text is always text: nothing here reads markup.

type Child = Node | string;
type Listener = (event: Event) => void;

export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Record<string, string | Listener> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "string") {
      made.setAttribute(key, value);
    } else {
      made.addEventListener(key, value);
    }
  }
  made.append(...children);
  return made;
}

/** Says what will happen, and resolves to whether it shall. */
export function confirmed(title: string, what: string): Promise<boolean> {
  const dialog = element(
    "dialog",
    { "aria-label": title },
    element("h2", {}, title),
    element("p", {}, what),
    element(
      "form",
      { method: "dialog" },
      element("button", { value: "" }, "Cancel"),
      element("button", { value: "yes" }, title),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}
