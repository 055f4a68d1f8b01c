// The logits of a step.
//
// The head is read whole for every token, which for a small model is half of all bytes. Where the caller has a copy of it
// in 8 bits (`rough`), every logit is estimated from that first, and the largest of each row are computed from the head
// itself. An estimate is off by about 1 % of the spread of the logits: the token to write next is among the largest, and
// the others only have to be right together, in the sum of the softmax.

// How many of n logits are above a bar.
static int64_t above(const float *logits, int64_t n, float bar) {
  vi found = {0};
  int64_t i = 0, count = 0;
  for (; i + VW <= n; i += VW) found -= (vi)(vf_load(logits + i) > vf_set(bar));
  for (int j = 0; j < VW; j++) count += found[j];
  for (; i < n; i++) count += logits[i] > bar;
  return count;
}

// The least and the largest of n logits; returns whether all are finite.
static int spread(const float *logits, int64_t n, float *low, float *high) {
  vf lowest = vf_set(logits[0]), highest = lowest;
  vi broken = {0};
  for (int64_t i = 0; i < n; i += VW) {
    vf v = i + VW <= n ? vf_load(logits + i) : vf_set(logits[0]);
    broken |= (vi)(v - v != vf_zero());
    lowest = vf_min(lowest, v), highest = vf_max(highest, v);
  }
  for (int j = 0; j < VW; j++)
    if (broken[j]) return 0;
  *low = -vf_top(-lowest), *high = vf_top(highest);
  for (int64_t i = n / VW * VW; i < n; i++) {
    if (!isfinite(logits[i])) return 0;
    *low = fminf(*low, logits[i]), *high = fmaxf(*high, logits[i]);
  }
  return 1;
}

// List the largest of n logits, CHOSEN at most, and return how many; none if some are not finite.
static int32_t choose(const float *logits, int64_t n, int32_t *chosen) {
  float low, high;
  if (!spread(logits, n, &low, &high)) return 0;
  for (int turn = 0; turn < 20; turn++) {  // after which the bar is right to a millionth of the spread
    float bar = low + (high - low) / 2;
    if (above(logits, n, bar) > CHOSEN) low = bar;
    else high = bar;
  }
  int32_t count = 0;
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t to = least(from + CHUNK, n);
    if (!above(logits + from, to - from, high)) continue;
    for (int64_t i = from; i < to; i++)
      if (logits[i] > high) chosen[count++] = (int32_t)i;
  }
  return count;
}

// Compute the largest logits of each row from the head itself.
static void refine(decoding *s, decoding_thread *t, float *logits) {
  const graft_decoder *d = s->d;
  int64_t n = d->vocabulary, wanted = s->last.m, all = 0, before = 0;
  for (int64_t row = part_of(wanted, 1, t->me, t->all); row < part_of(wanted, 1, t->me + 1, t->all); row++) {
    int32_t *chosen = s->chosen + row * (1 + CHOSEN);
    chosen[0] = choose(logits + row * n, n, chosen + 1);
  }
  meet(s, t);
  for (int64_t row = 0; row < wanted; row++) all += s->chosen[row * (1 + CHOSEN)];
  int64_t from = part_of(all, 1, t->me, t->all), to = part_of(all, 1, t->me + 1, t->all);
  few_plan plan = few_planned(d->head, 0, 0);
  for (int64_t row = 0; row < wanted; row++) {
    const int32_t *chosen = s->chosen + row * (1 + CHOSEN);
    for (int64_t i = from > before ? from - before : 0; i < least(chosen[0], to - before); i++) {
      int64_t token = chosen[1 + i];
      if (few_rows(&plan, &s->last, (few_span){row, row + 1}, token, token + 1, logits + token, n, 0)) s->failed = 1;
    }
    before += chosen[0];
  }
  meet(s, t);
}

// The logits of this thread's tokens.
static void project(decoding *s, decoding_thread *t, float *logits) {
  const graft_decoder *d = s->d;
  const graft_weight *head = d->rough ? d->rough : d->head;
  int64_t n = d->vocabulary, first = part_of(n, GROUP, t->me, t->all), last = part_of(n, GROUP, t->me + 1, t->all);
  t->plan = few_planned(head, &t->plan, (int)d->fixed);
  if (first < last && few_rows(&t->plan, &s->last, (few_span){0, s->last.m}, first, last, logits + first, n, 0))
    s->failed = 1;
  if (d->rough) meet(s, t), refine(s, t, logits);
  for (int64_t row = 0; row < s->last.m; row++)
    for (int64_t c = first; c < last && (d->head_bias || d->logit_cap > 0); c += VW) {
      int64_t count = least(VW, last - c);
      vf v = vf_load_n(logits + row * n + c, count);
      if (d->head_bias) v += vf_load_n(d->head_bias + c, count);
      if (d->logit_cap > 0) v = capped(v, d->logit_cap);
      vf_store_n(logits + row * n + c, v, count);
    }
}
