// SPDX-License-Identifier: MIT
// Gradients of convolution weights, and the input gradient of stride 2. Included inside the
// anonymous namespace of one translation unit, behind convolution.inl.
//
// A weight's gradient is a sum over pixels and images of gradient * input. Lines hold images, so a
// vector multiply-add takes 16 images of one pixel; pairs of bfloat16 hold two *channels*, so they
// are packed anew as two *pixels* of one channel, and one dot product takes both. A tile is 4
// output x 4 input channels of one tap, held in registers over a band of rows. Rows are packed by
// groups of 4 channels: as they lie in memory, the 4 lines of neighbouring pixels would fall into
// few sets of the first-level cache.

constexpr int kTileOut = kWidth == 16 ? 4 : 2;  // output channels of a register tile

// How operands become steps.
template <class Operands>
struct Steps {  // float lines: a step is a pixel
  static constexpr int kPixelsOfStep = 1;
  static constexpr bool kCopies = false;  // inputs are packed once, taps are offsets
};
#ifdef NASFAST_BF16_DOT
template <>
struct Steps<PairOperands> {
  static constexpr int kPixelsOfStep = 2;
  static constexpr bool kCopies = true;  // inputs are packed once for every column of the window
};
#endif

template <class Operands>
constexpr int64_t steps_of(int64_t width) {
  constexpr int64_t kPer = Steps<Operands>::kPixelsOfStep;
  return (width + kPer - 1) / kPer;
}

constexpr int64_t kStepFloats = kChannelGroup * kBlockImages;  // 32-bit entries of a step

template <class Operands>
int64_t packed_gradient_bytes(int32_t rows, int32_t width, int32_t channels) {
  return int64_t{padded_channels(channels)} / kChannelGroup * rows * steps_of<Operands>(width) *
         kStepFloats * 4;
}

// Steps of a packed row of inputs.
template <class Operands>
constexpr int64_t input_steps(int64_t in_width, int64_t out_width, int64_t kernel) {
  return Steps<Operands>::kCopies ? steps_of<Operands>(out_width) : in_width + kernel - 1;
}

template <class Operands>
int64_t packed_input_bytes(int32_t rows, int32_t in_width, int32_t out_width, int32_t channels,
                           int32_t kernel) {
  return int64_t{padded_channels(channels)} / kChannelGroup * rows *
         input_steps<Operands>(in_width, out_width, kernel) * kStepFloats * 4 *
         (Steps<Operands>::kCopies ? kernel : 1);
}

// All ones for the images of a block, zeros for those that it lacks.
struct ImageMask {
  alignas(kLineBytes) uint32_t bits[kBlockImages];
  explicit ImageMask(int32_t images) {
    for (int32_t i = 0; i < kBlockImages; ++i) bits[i] = i < images ? 0xffffffffu : 0u;
  }
};

// Packs one row of floats: pixels first...first + count * stride, zeros outside [0, width).
template <class Operands>
void pack_pixels(const float* row, int64_t width, int64_t channels, int64_t first, int64_t count,
                 const ImageMask& mask, float* out, int64_t group_floats) {
  for (int64_t group = 0; group < padded_channels(static_cast<int32_t>(channels));
       group += kChannelGroup, out += group_floats) {
    for (int64_t x = 0; x < count; ++x) {
      const int64_t source = first + x;
      const bool exists = row != nullptr && source >= 0 && source < width;
      for (int64_t c = 0; c < kChannelGroup; ++c) {
        float* to = out + x * kStepFloats + c * kBlockImages;
        for (int64_t at = 0; at < kBlockImages; at += kWidth) {
          if (exists && group + c < channels) {
            const float* from = row + (source * channels + group + c) * kBlockImages + at;
            store(to + at, keep(load(from), load_bits(mask.bits + at)));
          } else {
            store(to + at, zero());
          }
        }
      }
    }
  }
}

#ifdef NASFAST_BF16_DOT
// Packs one row of pairs: step n holds pixels first + 2 n stride and first + (2 n + 1) stride.
inline void pack_pairs(const uint32_t* row, int64_t width, int64_t channels, int64_t first,
                       int64_t stride, int64_t steps, int64_t pixels, const ImageMask& mask,
                       uint32_t* out, int64_t group_entries) {
  const int64_t num_lines = lines(Storage::kPair, static_cast<int32_t>(channels));
  const Bits images = load_bits(mask.bits);
  const Bits none = set1_bits(0);
  for (int64_t group = 0; group < padded_channels(static_cast<int32_t>(channels));
       group += kChannelGroup, out += group_entries) {
    for (int64_t n = 0; n < steps; ++n) {
      const int64_t x0 = first + 2 * n * stride, x1 = x0 + stride;
      const bool has0 = row != nullptr && x0 >= 0 && x0 < width;
      const bool has1 = row != nullptr && x1 >= 0 && x1 < width && 2 * n + 1 < pixels;
      for (int64_t l = 0; l < kChannelGroup / 2; ++l) {
        const int64_t line = group / 2 + l;
        uint32_t* to = out + n * kStepFloats + 2 * l * kBlockImages;
        Bits a = none, b = none;
        if (has0 && line < num_lines) a = load_bits(row + (x0 * num_lines + line) * kBlockImages);
        if (has1 && line < num_lines) b = load_bits(row + (x1 * num_lines + line) * kBlockImages);
        store_bits(to, both(low_halves(a, b), images));
        store_bits(to + kBlockImages, both(high_halves(a, b), images));
      }
    }
  }
}
#endif

template <class Operands>
void pack_gradient(const PackRows& a) {
  const ImageMask mask(a.images);
  const int64_t steps = steps_of<Operands>(a.width);
  const int64_t group = a.num_rows * steps * kStepFloats;
  using Entry = typename Operands::Entry;
  for (int64_t y = 0; y < a.num_rows; ++y) {
    auto* out = static_cast<Entry*>(a.out) + y * steps * kStepFloats;
    const auto* row = static_cast<const Entry*>(a.rows[y]);
    if constexpr (Steps<Operands>::kCopies) {
      pack_pairs(row, a.width, a.channels, 0, 1, steps, a.width, mask, out, group);
    } else {
      pack_pixels<Operands>(row, a.width, a.channels, 0, steps, mask, out, group);
    }
  }
}

template <class Operands>
void pack_input(const PackRows& a) {
  const ImageMask mask(a.images);
  const int64_t steps = input_steps<Operands>(a.width, a.out_width, a.kernel);
  const int64_t group = a.num_rows * steps * kStepFloats;
  const int64_t copy = padded_channels(a.channels) / kChannelGroup * group;
  using Entry = typename Operands::Entry;
  for (int64_t y = 0; y < a.num_rows; ++y) {
    auto* out = static_cast<Entry*>(a.out) + y * steps * kStepFloats;
    const auto* row = static_cast<const Entry*>(a.rows[y]);
    if constexpr (Steps<Operands>::kCopies) {
      for (int64_t dx = 0; dx < a.kernel; ++dx) {
        pack_pairs(row, a.width, a.channels, dx - a.kernel / 2, a.stride, steps, a.out_width, mask,
                   out + dx * copy, group);
      }
    } else {
      pack_pixels<Operands>(row, a.width, a.channels, -(a.kernel / 2), steps, mask, out, group);
    }
  }
}

// Adds the sums over the vectors of a tile to sums[o][4].
template <int kOut>
inline void add_tile(const Float (&tile)[kOut][kChannelGroup], float* sums) {
#ifdef NASFAST_TILE_SUMS
  if constexpr (kOut == 4) {
    store(sums, add(load(sums), tile_sums(tile)));
    return;
  }
#endif
  for (int o = 0; o < kOut; ++o) {
    for (int i = 0; i < kChannelGroup; ++i) {
      alignas(kLineBytes) float parts[kWidth];
      store(parts, tile[o][i]);
      for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) parts[k] += parts[k + half];
      }
      sums[o * kChannelGroup + i] += parts[0];
    }
  }
}

// One tap of kTileOut output and 4 input channels over all rows of a band.
template <class Operands>
inline __attribute__((always_inline)) void weight_tile(const typename Operands::Entry* gradient,
                                                       const typename Operands::Entry* input,
                                                       int64_t num_rows, int64_t steps,
                                                       int64_t input_row, int64_t input_step,
                                                       float* sums) {
  Float tile[kTileOut][kChannelGroup];
#pragma GCC unroll 4
  for (int o = 0; o < kTileOut; ++o) {
#pragma GCC unroll 4
    for (int i = 0; i < kChannelGroup; ++i) tile[o][i] = zero();
  }
  for (int64_t y = 0; y < num_rows; ++y) {
    const typename Operands::Entry* from = input + y * input_row;
    for (int64_t n = 0; n < steps; ++n, gradient += kStepFloats, from += input_step) {
      for (int slice = 0; slice < kSlices; ++slice) {
        typename Operands::Vector own[kTileOut];
#pragma GCC unroll 4
        for (int o = 0; o < kTileOut; ++o) {
          own[o] = Operands::read(gradient + o * kBlockImages + slice * kWidth);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kChannelGroup; ++i) {
          const typename Operands::Vector x =
              Operands::read(from + i * kBlockImages + slice * kWidth);
#pragma GCC unroll 4
          for (int o = 0; o < kTileOut; ++o) {
            tile[o][i] = Operands::multiply_add(own[o], x, tile[o][i]);
          }
        }
      }
    }
  }
  add_tile<kTileOut>(tile, sums);
}

template <class Operands>
void weight_gradient(const WeightGradientBand& a) {
  using Entry = typename Operands::Entry;
  const int64_t steps = steps_of<Operands>(a.width);
  const int64_t gradient_group = a.num_rows * steps * kStepFloats;
  const int64_t row_steps = input_steps<Operands>(a.in_width, a.width, a.input_kernel);
  const int64_t input_rows = (a.num_rows - 1) * a.stride + a.input_kernel;
  const int64_t input_group = input_rows * row_steps * kStepFloats;
  const int64_t copy = padded_channels(a.in_channels) / kChannelGroup * input_group;
  constexpr bool kCopies = Steps<Operands>::kCopies;
  const int64_t input_row = a.stride * row_steps * kStepFloats;
  const int64_t input_step = (kCopies ? 1 : a.stride) * kStepFloats;
  const int64_t inset = (a.input_kernel - a.kernel) / 2;
  float* sums = a.sums;
  for (int64_t o = 0; o < a.out_channels; o += kChannelGroup) {
    const Entry* gradient = static_cast<const Entry*>(a.gradient) + o / 4 * gradient_group;
    for (int64_t i = 0; i < a.in_channels; i += kChannelGroup) {
      const Entry* input = static_cast<const Entry*>(a.input) + i / 4 * input_group;
      for (int64_t dy = 0; dy < a.kernel; ++dy) {
        for (int64_t dx = 0; dx < a.kernel; ++dx, sums += 16) {
          const int64_t column = dx + inset;
          const Entry* from = input + (dy + inset) * row_steps * kStepFloats +
                              (kCopies ? column * copy : column * kStepFloats);
          for (int half = 0; half < kChannelGroup; half += kTileOut) {
            weight_tile<Operands>(gradient + half * kBlockImages, from, a.num_rows, steps,
                                  input_row, input_step, sums + half * kChannelGroup);
          }
        }
      }
    }
  }
}

// Pixels parity, parity + 2, ... of a row: kPx of them from the j-th on, all taps that reach them.
template <class Values, class Operands, int kPx>
inline void transposed_tile(const ConvRow& a, int64_t j, int64_t parity) {
  using Entry = typename Operands::Entry;
  const int64_t num_lines = lines(Operands::kStorage, a.in_channels);
  const int64_t tap_entries = num_lines * kChannelGroup;
  const auto* weight = static_cast<const Entry*>(a.weight);
  const int64_t out_lines = lines(Values::kStorage, a.out_channels);
  for (int64_t channel = 0; channel < a.out_channels; channel += kChannelGroup) {
    for (int slice = 0; slice < kSlices; ++slice) {
      Float sums[kPx][kChannelGroup];
      for (int p = 0; p < kPx; ++p) {
        for (int c = 0; c < kChannelGroup; ++c) sums[p][c] = zero();
      }
      for (int64_t dy = 0; dy < a.kernel; ++dy) {
        if (a.rows[dy] == nullptr) continue;
        const Entry* row = static_cast<const Entry*>(a.rows[dy]) + slice * kWidth;
        for (int64_t dx = 0; dx < a.kernel; ++dx) {
          const int64_t twice = parity + a.kernel / 2 - dx;
          if (twice % 2 != 0) continue;
          const int64_t source = j + twice / 2;
          const Entry* tap = weight + (dy * a.kernel + dx) * tap_entries;
          if (source >= 0 && source + kPx <= a.in_width) {
            add_tap<Operands, 1, 1, kPx, false, false, 0>(row, tap, source, num_lines, sums);
            continue;
          }
          for (int p = 0; p < kPx; ++p) {
            if (source + p < 0 || source + p >= a.in_width) continue;
            Float one[1][kChannelGroup];
            for (int c = 0; c < kChannelGroup; ++c) one[0][c] = sums[p][c];
            add_tap<Operands, 1, 1, 1, false, false, 0>(row, tap, source + p, num_lines, one);
            for (int c = 0; c < kChannelGroup; ++c) sums[p][c] = one[0][c];
          }
        }
      }
      for (int p = 0; p < kPx; ++p) {
        ConvRow at = a;
        at.out = static_cast<typename Values::Entry*>(a.out) +
                 (parity + 2 * (j + p)) * out_lines * kBlockImages;
        Float one[1][kChannelGroup];
        for (int c = 0; c < kChannelGroup; ++c) one[0][c] = sums[p][c];
        write_tile<Values, 1>(at, 0, channel, slice, one);
      }
    }
    weight += a.kernel * a.kernel * tap_entries;
  }
}

template <class Values, class Operands>
void convolve_transposed(const ConvRow& a) {
  for (int64_t parity = 0; parity < 2; ++parity) {
    const int64_t count = (a.out_width - parity + 1) / 2;
    int64_t j = 0;
    for (; j + kPixels <= count; j += kPixels) {
      transposed_tile<Values, Operands, kPixels>(a, j, parity);
    }
    for (; j < count; ++j) transposed_tile<Values, Operands, 1>(a, j, parity);
  }
}
