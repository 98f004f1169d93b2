/* SPDX-License-Identifier: Apache-2.0
   The row operations of standard attention between its matrix products: what a BLAS leaves to its
   user, in vector loops of the processor at hand. */
#include <float.h>
#include <stdint.h>
#include <string.h>

/* e^x for x <= 0, relative error below 3e-7: 2^n times a polynomial on [-0.5, 0.5]. */
static inline float exp_of(float x) {
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
  float y = x * 1.44269504f;
  y = y < -126.0f ? -126.0f : y;
  const float n = (y + shift) - shift;
  const float f = y - n;
  float p = 1.33977377e-3f;
  p = p * f + 9.67770822e-3f;
  p = p * f + 5.55032934e-2f;
  p = p * f + 2.40222482e-1f;
  p = p * f + 6.93147202e-1f;
  p = p * f + 1.0f;
  int32_t bits;
  memcpy(&bits, &p, sizeof bits);
  bits += (int32_t)n << 23;
  memcpy(&p, &bits, sizeof bits);
  return p;
}

/* scores[rows][columns] become weights. Row r sees its first `visible + r * step` columns (at least
   one, at most all); the others get weight 0. */
void bench_softmax_rows(float* scores, const int64_t* shape, int64_t visible, int64_t step,
                        float scale) {
  const int64_t rows = shape[0], columns = shape[1];
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * columns;
    int64_t seen = visible + r * step;
    seen = seen < 1 ? 1 : seen > columns ? columns : seen;
    float top = -FLT_MAX;
#pragma omp simd reduction(max : top)
    for (int64_t c = 0; c < seen; ++c) top = row[c] > top ? row[c] : top;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < seen; ++c) {
      const float weight = exp_of((row[c] - top) * scale);
      row[c] = weight;
      sum += weight;
    }
    const float factor = 1 / sum;
#pragma omp simd
    for (int64_t c = 0; c < seen; ++c) row[c] *= factor;
    memset(row + seen, 0, (size_t)(columns - seen) * sizeof *row);
  }
}

/* dweights[rows][columns] become dscores:
   weights * (dweights - sum(weights * dweights)) * scale. */
void bench_softmax_gradient(const float* weights, float* dweights, const int64_t* shape,
                            float scale) {
  const int64_t rows = shape[0], columns = shape[1];
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = weights + r * columns;
    float* d = dweights + r * columns;
    float delta = 0;
#pragma omp simd reduction(+ : delta)
    for (int64_t c = 0; c < columns; ++c) delta += p[c] * d[c];
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) d[c] = p[c] * (d[c] - delta) * scale;
  }
}
