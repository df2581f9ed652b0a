// SPDX-License-Identifier: MIT
// Lines in memory as vectors: how a value is read and written, and how an operand of a convolution
// is multiplied. Included inside the anonymous namespace of one translation unit, behind its SIMD
// header.

constexpr int kSlices = kBlockImages / kWidth;  // vectors of a line
// Entries that terms are asked for ahead: they come from beyond the second-level cache.
constexpr int64_t kAhead = 16 * kBlockImages;

// Values of precision fp32: a line is one channel. `write` leaves in x what was written.
struct FloatValues {
  static constexpr int kChannels = 1;
  static constexpr Storage kStorage = Storage::kFloat;
  using Entry = float;
  static void read(const Entry* from, Float (&x)[1]) { x[0] = load(from); }
  static void write(Entry* to, Float (&x)[1]) { store(to, x[0]); }
};

// Values of precision bf16: a line is two channels.
struct PairValues {
  static constexpr int kChannels = 2;
  static constexpr Storage kStorage = Storage::kPair;
  using Entry = uint32_t;
  static void read(const Entry* from, Float (&x)[2]) {
    const Bits pair = load_bits(from);
    x[0] = even(pair);
    x[1] = odd(pair);
  }
  static void write(Entry* to, Float (&x)[2]) {
    const Bits pair = pack_pair(x[0], x[1]);
    store_bits(to, pair);
    x[0] = even(pair);
    x[1] = odd(pair);
  }
};

// Operands of convolutions as floats; `Values` tells whether they are rounded to bfloat16.
template <class Values>
struct FloatOperands {
  static constexpr Storage kStorage = Storage::kFloat;
  using Entry = float;
  using Vector = Float;
  static Vector read(const Entry* from) { return load(from); }
  static Vector broadcast(Entry x) { return set1(x); }
  static Float multiply_add(Vector x, Vector weight, Float sum) { return fmadd(x, weight, sum); }
  // Writes the channels of a value's line: one or two lines of operands.
  static void write(Entry* to, const Float (&x)[Values::kChannels]) {
    if constexpr (Values::kChannels == 1) {
      store(to, x[0]);
    } else {
      const Bits pair = pack_pair(x[0], x[1]);
      store(to, even(pair));
      store(to + kBlockImages, odd(pair));
    }
  }
};

#ifdef NASFAST_BF16_DOT
// Operands as pairs of bfloat16, two channels to one multiply-add.
struct PairOperands {
  static constexpr Storage kStorage = Storage::kPair;
  using Entry = uint32_t;
  using Vector = Bits;
  static Vector read(const Entry* from) { return load_bits(from); }
  static Vector broadcast(Entry x) { return set1_bits(x); }
  static Float multiply_add(Vector x, Vector weight, Float sum) { return dot(sum, x, weight); }
  static void write(Entry* to, const Float (&x)[2]) { store_bits(to, pack_pair(x[0], x[1])); }
};
#endif

// Writes the channels of a value's line to a pixel x of a row of operands.
template <class Values, class Operands>
inline void write_operand(void* row, int64_t x, int64_t line, int64_t operand_lines, int64_t slice,
                          const Float (&value)[Values::kChannels]) {
  // The last line of an odd number of channels has one line of float operands.
  const int64_t to = Operands::kStorage == Values::kStorage ? line : line * Values::kChannels;
  auto* operand =
      static_cast<typename Operands::Entry*>(row) + (x * operand_lines + to) * kBlockImages + slice;
  if (Operands::kStorage == Values::kStorage || to + 1 < operand_lines) {
    Operands::write(operand, value);
  } else if constexpr (Operands::kStorage == Storage::kFloat) {
    store(reinterpret_cast<float*>(operand), even(pack_pair(value[0], zero())));
  }
}

// One channel of a pixel x of a row of values.
template <class Values>
inline Float read_channel(const void* row, int64_t x, int32_t channels, int64_t channel,
                          int64_t slice) {
  const int64_t line = x * lines(Values::kStorage, channels) + channel / Values::kChannels;
  Float value[Values::kChannels];
  Values::read(static_cast<const typename Values::Entry*>(row) + line * kBlockImages + slice,
               value);
  return channel % Values::kChannels == 0 ? value[0] : value[Values::kChannels - 1];
}

// Nearest bfloat16 of a number, as its bits; NaN becomes a quiet NaN.
inline uint32_t bfloat16_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fc0;
  return (bits + (0x7fff + ((bits >> 16) & 1))) >> 16;
}
inline float bfloat16_rounded(float x) {
  const uint32_t bits = bfloat16_bits(x) << 16;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
