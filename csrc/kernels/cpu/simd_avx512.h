// SPDX-License-Identifier: MIT
// AVX-512 (F, BW, DQ, VL), with the bfloat16 instructions where NASFAST_BF16_DOT is defined.
// Included inside the anonymous namespace of one translation unit, behind its target pragma.
//
// Intrinsics that GCC 12 defines by an undefined vector give false warnings
// (-Wmaybe-uninitialized): their forms with a mask, here a full one, and the compiler's vector
// operators do not.

constexpr int kWidth = 16;  // floats of a vector
constexpr int kPixels = 4;  // of a convolution tile: 16 sums in 32 registers
using Float = __m512;
using Bits = __m512i;
using Words = uint32_t __attribute__((vector_size(64)));
constexpr __mmask16 kAll = 0xffff;

inline Float load(const float* from) { return _mm512_load_ps(from); }
inline Bits load_bits(const uint32_t* from) { return _mm512_load_si512(from); }
inline void store(float* to, Float x) { _mm512_store_ps(to, x); }
inline void store_bits(uint32_t* to, Bits x) { _mm512_store_si512(to, x); }
inline Float zero() { return _mm512_setzero_ps(); }
inline Float set1(float x) { return _mm512_set1_ps(x); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float fmadd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
// Where one is NaN the second operand is returned: a NaN survives.
inline Float relu(Float x) { return _mm512_maskz_max_ps(kAll, _mm512_setzero_ps(), x); }
inline Float max_nan(Float a, Float b) {
  return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
}

inline Float even(Bits pair) {
  return reinterpret_cast<Float>(reinterpret_cast<Words>(pair) << 16);
}
inline Float odd(Bits pair) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline Float keep(Float x, Bits mask) { return _mm512_and_ps(x, _mm512_castsi512_ps(mask)); }
// 1 where x is positive (or NaN), else 0.
inline Float is_positive(Float x) {
  return _mm512_mask_mov_ps(set1(1.0f), _mm512_cmp_ps_mask(x, zero(), _CMP_LE_OQ), zero());
}
inline Float where_positive(Float x, Float value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_NLE_UQ), value);
}
// a where x > y, elsewhere b.
inline Float where_above(Float x, Float y, Float a, Float b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ), a);
}
// a where x is NaN, elsewhere b.
inline Float where_nan(Float x, Float a, Float b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), a);
}

// The sum over each of 16 vectors, in their order.
#define NASFAST_TILE_SUMS
inline Float tile_sums(const Float (&tile)[4][4]) {
  Float quads[4];  // of four vectors each: their sums within every 128 bits
  for (int o = 0; o < 4; ++o) {
    const Float* v = tile[o];
    const Float low01 = __builtin_shufflevector(v[0], v[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9,
                                                25, 12, 28, 13, 29);
    const Float high01 = __builtin_shufflevector(v[0], v[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11,
                                                 27, 14, 30, 15, 31);
    const Float low23 = __builtin_shufflevector(v[2], v[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9,
                                                25, 12, 28, 13, 29);
    const Float high23 = __builtin_shufflevector(v[2], v[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11,
                                                 27, 14, 30, 15, 31);
    const Float a = add(low01, high01), b = add(low23, high23);
    quads[o] = add(
        __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
        __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31));
  }
  Float halves[2];
  for (int k = 0; k < 2; ++k) {
    const Float a = quads[2 * k], b = quads[2 * k + 1];
    halves[k] = add(
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),
        __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
  }
  return add(__builtin_shufflevector(halves[0], halves[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                     24, 25, 26, 27),
             __builtin_shufflevector(halves[0], halves[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                     23, 28, 29, 30, 31));
}

#ifdef NASFAST_BF16_DOT
inline Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
// The even halves of two vectors of pairs side by side, and the odd ones.
inline Bits low_halves(Bits a, Bits b) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, a,
                                 reinterpret_cast<Bits>(reinterpret_cast<Words>(b) << 16));
}
inline Bits high_halves(Bits a, Bits b) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa,
                                 reinterpret_cast<Bits>(reinterpret_cast<Words>(a) >> 16), b);
}
inline Bits pack_pair(Float low, Float high) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave),
                                  reinterpret_cast<Bits>(_mm512_cvtne2ps_pbh(high, low)));
}
inline Float dot(Float sum, Bits a, Bits b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline Bits set1_bits(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
#else
inline Bits upper_half(Bits x) { return reinterpret_cast<Bits>(reinterpret_cast<Words>(x) >> 16); }
// The bits of x rounded to bfloat16, nearest even, in the high half; NaN becomes a quiet NaN.
inline Bits rounded(Float x) {
  const Bits bits = _mm512_castps_si512(x);
  const Bits lowest = _mm512_and_si512(upper_half(bits), _mm512_set1_epi32(1));
  const Bits up = _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                               _mm512_set1_epi32(0x7fc00000));
}
inline Bits pack_pair(Float low, Float high) {
  const Bits mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_or_si512(upper_half(rounded(low)), _mm512_and_si512(rounded(high), mask));
}
#endif

inline void add_to(double* total, Float x) {
  const __m256 low = _mm512_maskz_extractf32x8_ps(0xff, x, 0);
  const __m256 high = _mm512_maskz_extractf32x8_ps(0xff, x, 1);
  _mm512_store_pd(total, _mm512_add_pd(_mm512_load_pd(total), _mm512_maskz_cvtps_pd(0xff, low)));
  _mm512_store_pd(total + 8,
                  _mm512_add_pd(_mm512_load_pd(total + 8), _mm512_maskz_cvtps_pd(0xff, high)));
}
