#define LEVEL avx2
#include "unit.h"
