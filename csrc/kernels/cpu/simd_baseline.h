// SPDX-License-Identifier: MIT
// Vectors of four floats by the compiler's own vector types: SSE2 on x86-64, NEON on AArch64.
// Included inside the anonymous namespace of one translation unit.

constexpr int kWidth = 4;   // floats of a vector
constexpr int kPixels = 2;  // of a convolution tile: 8 sums in 16 registers
typedef float Float __attribute__((vector_size(16), may_alias));
typedef uint32_t Bits __attribute__((vector_size(16), may_alias));
typedef double Double2 __attribute__((vector_size(16), may_alias));

inline Float load(const float* from) { return *reinterpret_cast<const Float*>(from); }
inline Bits load_bits(const uint32_t* from) { return *reinterpret_cast<const Bits*>(from); }
inline void store(float* to, Float x) { *reinterpret_cast<Float*>(to) = x; }
inline void store_bits(uint32_t* to, Bits x) { *reinterpret_cast<Bits*>(to) = x; }
inline Float zero() { return Float{}; }
inline Float set1(float x) { return Float{x, x, x, x}; }
inline Float add(Float a, Float b) { return a + b; }
inline Float sub(Float a, Float b) { return a - b; }
inline Float mul(Float a, Float b) { return a * b; }
inline Float fmadd(Float a, Float b, Float c) { return a * b + c; }
// A comparison with NaN is false: a NaN survives.
inline Float relu(Float x) { return x <= 0.0f ? zero() : x; }
inline Float max_nan(Float a, Float b) {
  const Float larger = a <= b ? b : a;  // a where either is NaN
  return b == b ? larger : b;
}

inline Float even(Bits pair) { return reinterpret_cast<Float>(pair << 16); }
inline Float odd(Bits pair) { return reinterpret_cast<Float>(pair & 0xffff0000u); }
// The bits of x rounded to bfloat16, nearest even, in the high half; NaN becomes a quiet NaN.
inline Bits rounded(Float x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits up = bits + (((bits >> 16) & 1u) + 0x7fffu);
  const Bits nan = Bits{} + 0x7fc00000u;
  return x == x ? up : nan;
}
inline Bits pack_pair(Float low, Float high) {
  return (rounded(low) >> 16) | (rounded(high) & 0xffff0000u);
}

inline Float keep(Float x, Bits mask) {
  return reinterpret_cast<Float>(reinterpret_cast<Bits>(x) & mask);
}
// 1 where x is positive (or NaN), else 0.
inline Float is_positive(Float x) { return x <= 0.0f ? zero() : set1(1.0f); }
inline Float where_positive(Float x, Float value) { return x <= 0.0f ? zero() : value; }
// a where x > y, elsewhere b.
inline Float where_above(Float x, Float y, Float a, Float b) { return x > y ? a : b; }
// a where x is NaN, elsewhere b.
inline Float where_nan(Float x, Float a, Float b) { return x == x ? b : a; }

inline void add_to(double* total, Float x) {
  Double2* to = reinterpret_cast<Double2*>(total);
  to[0] += Double2{x[0], x[1]};
  to[1] += Double2{x[2], x[3]};
}
