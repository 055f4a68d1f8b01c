#define LEVEL avx512
#include "unit.h"
