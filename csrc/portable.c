#define LEVEL portable
#include "unit.h"
