#define LEVEL amx
#include "unit.h"
