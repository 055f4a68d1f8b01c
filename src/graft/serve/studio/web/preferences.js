import { fill, h, page } from "./studio.js";

fill(page, h("h1", {}, document.title.split(" · ")[0]));
