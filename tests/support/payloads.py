"""Forty texts that become scripts where a page takes texts for HTML, and what tells whether one did."""

ACT = "window.xss=1"
_ELEMENTS = [
    f"<script>{ACT}</script>",
    f"<ScRiPt>{ACT}</sCrIpT>",
    f"<script/src=data:,{ACT}></script>",
    f"<<script>{ACT}//<</script>",
    f'"><script>{ACT}</script>',
    f"'><script>{ACT}</script>",
    f"</title><script>{ACT}</script>",
    f"</textarea><script>{ACT}</script>",
    f"</style><script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f"--><script>{ACT}</script>",
    f"]]><script>{ACT}</script>",
    f"<img src=x onerror={ACT}>",
    f"<img/src/onerror={ACT}>",
    f'<img src="x" onerror="{ACT}">',
    f"<IMG SRC=x ONERROR={ACT}>",
    '<img src=x onerror="&#119;indow.xss=1">',
    f"<image href=x onerror={ACT}>",
    f"<svg onload={ACT}>",
    f"<svg><script>{ACT}</script></svg>",
    f"<svg><animate onbegin={ACT} attributeName=x dur=1s>",
    f"<svg><a xlink:href='javascript:{ACT}'><text y=20>x</text></a></svg>",
    f"<math><mi xlink:href='javascript:{ACT}'>x</mi></math>",
    f"<iframe src='javascript:parent.{ACT}'></iframe>",
    f"<iframe srcdoc='<script>parent.{ACT}</script>'></iframe>",
    f"<object data='javascript:{ACT}'></object>",
    f"<embed src='javascript:{ACT}'>",
    f"<body onload={ACT}>",
    f"<input autofocus onfocus={ACT}>",
    f"<select autofocus onfocus={ACT}></select>",
    f"<details open ontoggle={ACT}>x</details>",
    f"<video><source onerror={ACT}></video>",
    f"<audio src=x onerror={ACT}>",
    f"<marquee onstart={ACT}>x</marquee>",
    "<base href='http://evil.test/'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{ACT}'>",
    "<link rel=stylesheet href='http://evil.test/x.css'>",
    f"<a href='javascript:{ACT}' id=xss>x</a>",
    f"[x](javascript:{ACT})",
    f"<form action='javascript:{ACT}'><button id=xss>x</button></form>",
]
PAYLOADS = tuple(_ELEMENTS)
# Elements that no page of the studio has, and attributes that its own elements never have.
_LOOK = """() => {
  const found = window.xss === undefined ? [] : ["a script ran"];
  const never = ["script:not([src^='/studio/web/'])", "iframe", "object", "embed", "base", "math", "marquee",
    "video", "audio", "image", "#xss", "a[href^='javascript']", "form[action^='javascript']",
    "meta[http-equiv]", "link[href*='evil']", "img[src='x']"];
  for (const one of document.querySelectorAll(never.join())) found.push(one.outerHTML.slice(0, 120));
  for (const element of document.querySelectorAll("*"))
    for (const one of element.attributes)
      if (one.name.startsWith("on")) found.push(`${element.tagName} ${one.name}`);
  return found;
}"""


def injected(page):
    """Return what payloads have become on a page of Chromium; nothing where all of them stayed text."""
    return page.evaluate(_LOOK)
