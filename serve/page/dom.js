// Makes elements; text is only ever text.

/** An element with properties, and children that are nodes or strings. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The element of an id. */
export function at(id) {
  return document.getElementById(id);
}
