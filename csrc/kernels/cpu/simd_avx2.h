// SPDX-License-Identifier: MIT
// AVX2 with FMA. Included inside the anonymous namespace of one translation unit, behind its target
// pragma.

constexpr int kWidth = 8;   // floats of a vector
constexpr int kPixels = 2;  // of a convolution tile: 8 sums in 16 registers
using Float = __m256;
using Bits = __m256i;

inline Float load(const float* from) { return _mm256_load_ps(from); }
inline Bits load_bits(const uint32_t* from) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store(float* to, Float x) { _mm256_store_ps(to, x); }
inline void store_bits(uint32_t* to, Bits x) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), x);
}
inline Float zero() { return _mm256_setzero_ps(); }
inline Float set1(float x) { return _mm256_set1_ps(x); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float fmadd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
// Where one is NaN the second operand is returned: a NaN survives.
inline Float relu(Float x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
inline Float max_nan(Float a, Float b) {
  return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

inline Float even(Bits pair) { return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)); }
inline Float odd(Bits pair) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
// The bits of x rounded to bfloat16, nearest even, in the high half; NaN becomes a quiet NaN.
inline Bits rounded(Float x) {
  const Bits bits = _mm256_castps_si256(x);
  const Bits lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const Bits up = _mm256_add_epi32(bits, _mm256_add_epi32(lowest, _mm256_set1_epi32(0x7fff)));
  const Float nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  return _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(up), nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
inline Bits pack_pair(Float low, Float high) {
  const Bits mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm256_or_si256(_mm256_srli_epi32(rounded(low), 16),
                         _mm256_and_si256(rounded(high), mask));
}

inline Float keep(Float x, Bits mask) { return _mm256_and_ps(x, _mm256_castsi256_ps(mask)); }
// 1 where x is positive (or NaN), else 0.
inline Float is_positive(Float x) {
  return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_NLE_UQ), set1(1.0f));
}
inline Float where_positive(Float x, Float value) {
  return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_NLE_UQ), value);
}
// a where x > y, elsewhere b.
inline Float where_above(Float x, Float y, Float a, Float b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_GT_OQ));
}
// a where x is NaN, elsewhere b.
inline Float where_nan(Float x, Float a, Float b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

inline void add_to(double* total, Float x) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  _mm256_store_pd(total, _mm256_add_pd(_mm256_load_pd(total), low));
  _mm256_store_pd(total + 4, _mm256_add_pd(_mm256_load_pd(total + 4), high));
}
