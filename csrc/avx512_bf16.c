#define LEVEL avx512_bf16
#include "unit.h"
