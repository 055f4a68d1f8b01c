// All kernels, compiled for the level of the unit that includes this. LEVEL is the level's name.

#include "graft.h"
#include "simd.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define KERNEL(name) __attribute__((visibility("default"))) JOIN(graft_##name, LEVEL)

#include "scratch.h"
#include "decode.h"
#include "quantise.h"
#include "product.h"
#include "low_rank.h"
#include "loss.h"
#include "optimizer.h"
#include "attention.h"
#include "attention_backward.h"
#include "norm.h"
#include "elementwise.h"
#include "decoder.h"
