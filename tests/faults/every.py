"""All cells of the harness, in the order in which `make faults` tries them."""

import crash
import errnos
import flips
import fuzz
import kills
import races
import stops

PARTS = (crash, errnos, flips, kills, stops, races, fuzz)
CELLS = {cell.name: cell for part in PARTS for cell in part.CELLS}
