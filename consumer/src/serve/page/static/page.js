// Makes the page live. Without scripts, all views work with links and forms.
import { startClock } from "./clock.js";
import { startKeys } from "./keys.js";
import { startLive } from "./live.js";
import { startPast } from "./past.js";
import { startPlot } from "./plot.js";
import { startReread } from "./reread.js";

document.documentElement.classList.add("on");
startClock();
startKeys();
startPast();
startPlot();
startLive();
startReread();
