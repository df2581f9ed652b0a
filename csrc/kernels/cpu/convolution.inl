// SPDX-License-Identifier: MIT
// Convolution of one row of a block, its statistics, and the packing of weights. Included inside
// the anonymous namespace of one translation unit, behind storage.inl.
//
// A tile is kPx neighbouring pixels x kChannelGroup output channels, its sums held in registers
// over all taps and input channels: each weight is broadcast once and used kPx times, each input
// line is loaded once and used kChannelGroup times. The groups of channels are the inner loop, so
// that the input of a tile stays in the first-level cache.

// Adds tap (dy, kDx) of a stride-kStride convolution with padding kKernel / 2. Pixels whose tap
// lies outside the image are left out: the first one at the left border, the last one at the right.
template <class Operands, int kKernel, int kStride, int kPx, bool kLeft, bool kRight, int kDx>
inline __attribute__((always_inline)) void add_tap(const typename Operands::Entry* row,
                                                   const typename Operands::Entry* weight,
                                                   int64_t x, int64_t num_lines,
                                                   Float (&sums)[kPx][kChannelGroup]) {
  constexpr int kPad = kKernel / 2;
  constexpr int kFirst = kLeft && kDx < kPad ? 1 : 0;
  constexpr int kLast = kRight && kDx > kPad ? kPx - 1 : kPx;
  const auto* pixel =
      row + (x * kStride + kFirst * kStride + kDx - kPad) * num_lines * kBlockImages;
  for (int64_t k = 0; k < num_lines; ++k) {
    typename Operands::Vector in[kPx];
#pragma GCC unroll 8
    for (int p = kFirst; p < kLast; ++p) {
      in[p] = Operands::read(pixel + ((p - kFirst) * kStride * num_lines + k) * kBlockImages);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kChannelGroup; ++c) {
      const typename Operands::Vector w = Operands::broadcast(weight[k * kChannelGroup + c]);
#pragma GCC unroll 8
      for (int p = kFirst; p < kLast; ++p) {
        sums[p][c] = Operands::multiply_add(in[p], w, sums[p][c]);
      }
    }
  }
}

// Updates the statistics with a tile of raw results; `channel` is its first channel.
template <int kPx>
inline __attribute__((always_inline)) void add_moments(const Moments& moments, int64_t channel,
                                                       int slice, bool is_pilot,
                                                       const Float (&sums)[kPx][kChannelGroup]) {
#pragma GCC unroll 8
  for (int c = 0; c < kChannelGroup; ++c) {
    const int64_t at = (channel + c) * kBlockImages + slice * kWidth;
    if (is_pilot) store(moments.pilot + at, sums[0][c]);
    const Float pilot = load(moments.pilot + at);
    Float sum = load(moments.sum + at), square = load(moments.square + at);
#pragma GCC unroll 8
    for (int p = 0; p < kPx; ++p) {
      const Float centred = sub(sums[p][c], pilot);
      sum = add(sum, centred);
      square = fmadd(centred, centred, square);
    }
    store(moments.sum + at, sum);
    store(moments.square + at, square);
  }
}

// Writes a tile and leaves in `sums` what was written: statistics must be those of the rounded
// numbers, or a channel that is constant would be normalised by rounding. The last group may have
// fewer channels than kChannelGroup; the sums beyond them are zero, so a half-used line of pairs is
// filled up with zeros.
template <class Values, int kPx>
inline __attribute__((always_inline)) void write_tile(const ConvRow& a, int64_t x, int64_t channel,
                                                      int slice,
                                                      Float (&sums)[kPx][kChannelGroup]) {
  constexpr int kChannels = Values::kChannels;
  const int64_t num_lines = lines(Values::kStorage, a.out_channels);
  const int64_t first = channel / kChannels;
  auto* out = static_cast<typename Values::Entry*>(a.out) + (x * num_lines + first) * kBlockImages +
              slice * kWidth;
#pragma GCC unroll 8
  for (int l = 0; l < kChannelGroup / kChannels; ++l) {
    if (first + l >= num_lines) break;
#pragma GCC unroll 8
    for (int p = 0; p < kPx; ++p) {
      Float line[kChannels];
      for (int c = 0; c < kChannels; ++c) line[c] = sums[p][l * kChannels + c];
      Values::write(out + (p * num_lines + l) * kBlockImages, line);
      for (int c = 0; c < kChannels; ++c) sums[p][l * kChannels + c] = line[c];
    }
  }
}

template <class Values, class Operands, int kKernel, int kStride, int kPx, bool kLeft, bool kRight>
inline void tile(const ConvRow& a, int64_t x) {
  using Entry = typename Operands::Entry;
  const int64_t num_lines = lines(Operands::kStorage, a.in_channels);
  const int64_t row_weights = kKernel * num_lines * kChannelGroup;
  const auto* weight = static_cast<const Entry*>(a.weight);
  if (x + 2 * kPx <= a.out_width) {
    const int64_t bytes = int64_t{lines(Values::kStorage, a.out_channels)} * kLineBytes * kPx;
    const char* next = static_cast<const char*>(a.out) + (x / kPx + 1) * bytes;
    for (int64_t b = 0; b < bytes; b += kLineBytes) __builtin_prefetch(next + b, 1, 3);
  }
  for (int64_t channel = 0; channel < a.out_channels; channel += kChannelGroup) {
    for (int slice = 0; slice < kSlices; ++slice) {
      Float sums[kPx][kChannelGroup];
#pragma GCC unroll 8
      for (int p = 0; p < kPx; ++p) {
#pragma GCC unroll 8
        for (int c = 0; c < kChannelGroup; ++c) sums[p][c] = zero();
      }
      const Entry* tap = weight;
      for (int dy = 0; dy < kKernel; ++dy, tap += row_weights) {
        if (a.rows[dy] == nullptr) continue;
        const Entry* row = static_cast<const Entry*>(a.rows[dy]) + slice * kWidth;
        const int64_t step = num_lines * kChannelGroup;
        add_tap<Operands, kKernel, kStride, kPx, kLeft, kRight, 0>(row, tap, x, num_lines, sums);
        if constexpr (kKernel == 3) {
          add_tap<Operands, 3, kStride, kPx, kLeft, kRight, 1>(row, tap + step, x, num_lines, sums);
          add_tap<Operands, 3, kStride, kPx, kLeft, kRight, 2>(row, tap + 2 * step, x, num_lines,
                                                               sums);
        }
      }
      write_tile<Values, kPx>(a, x, channel, slice, sums);
      if (a.moments != nullptr) {
        add_moments<kPx>(*a.moments, channel, slice, a.is_first && x == 0, sums);
      }
    }
    weight += kKernel * row_weights;
  }
}

template <class Values, class Operands, int kKernel, int kStride, int kPx>
inline void tiles(const ConvRow& a, int64_t x) {
  const bool is_left = kKernel > 1 && x == 0;
  const bool is_right = (x + kPx - 1) * kStride + kKernel / 2 >= a.in_width;
  if (is_left && is_right) {
    tile<Values, Operands, kKernel, kStride, kPx, true, true>(a, x);
  } else if (is_left) {
    tile<Values, Operands, kKernel, kStride, kPx, true, false>(a, x);
  } else if (is_right) {
    tile<Values, Operands, kKernel, kStride, kPx, false, true>(a, x);
  } else {
    tile<Values, Operands, kKernel, kStride, kPx, false, false>(a, x);
  }
}

template <class Values, class Operands, int kKernel, int kStride>
void convolve_row(const ConvRow& a) {
  int64_t x = 0;
  for (; x + kPixels <= a.out_width; x += kPixels) {
    tiles<Values, Operands, kKernel, kStride, kPixels>(a, x);
  }
  const int64_t left = a.out_width - x;
  if constexpr (kPixels > 3) {
    if (left == 3) return tiles<Values, Operands, kKernel, kStride, 3>(a, x);
    if (left == 2) return tiles<Values, Operands, kKernel, kStride, 2>(a, x);
  }
  if (left == 1) tiles<Values, Operands, kKernel, kStride, 1>(a, x);
}

// Any odd kernel: one pixel at a time, every tap checked against the border.
template <class Values, class Operands>
void convolve_row_general(const ConvRow& a) {
  using Entry = typename Operands::Entry;
  const int64_t num_lines = lines(Operands::kStorage, a.in_channels);
  const int64_t group_weights = a.kernel * a.kernel * num_lines * kChannelGroup;
  for (int64_t x = 0; x < a.out_width; ++x) {
    const auto* weight = static_cast<const Entry*>(a.weight);
    for (int64_t channel = 0; channel < a.out_channels; channel += kChannelGroup) {
      for (int slice = 0; slice < kSlices; ++slice) {
        Float sums[1][kChannelGroup] = {{zero(), zero(), zero(), zero()}};
        for (int64_t dy = 0; dy < a.kernel; ++dy) {
          if (a.rows[dy] == nullptr) continue;
          const Entry* row = static_cast<const Entry*>(a.rows[dy]) + slice * kWidth;
          for (int64_t dx = 0; dx < a.kernel; ++dx) {
            const int64_t source = x * a.stride + dx - a.kernel / 2;
            if (source < 0 || source >= a.in_width) continue;
            const Entry* tap = weight + (dy * a.kernel + dx) * num_lines * kChannelGroup;
            add_tap<Operands, 1, 1, 1, false, false, 0>(row, tap, source, num_lines, sums);
          }
        }
        write_tile<Values, 1>(a, x, channel, slice, sums);
        if (a.moments != nullptr) {
          add_moments<1>(*a.moments, channel, slice, a.is_first && x == 0, sums);
        }
      }
      weight += group_weights;
    }
  }
}

template <class Values, class Operands>
void convolve(const ConvRow& a) {
  if (a.kernel == 1 && a.stride == 1) return convolve_row<Values, Operands, 1, 1>(a);
  if (a.kernel == 3 && a.stride == 1) return convolve_row<Values, Operands, 3, 1>(a);
  if (a.kernel == 3 && a.stride == 2) return convolve_row<Values, Operands, 3, 2>(a);
  convolve_row_general<Values, Operands>(a);
}

// Packed weight: [group of output channels][tap][input line][kChannelGroup] entries of 32 bits;
// what lies beyond the channels is zero.
template <class Operands>
int64_t packed_bytes(int32_t in, int32_t out, int32_t kernel) {
  return int64_t{padded_channels(out)} * kernel * kernel * lines(Operands::kStorage, in) *
         int64_t{sizeof(typename Operands::Entry)};
}

template <class Values, class Operands>
void pack_weight(const float* weight, int32_t in, int32_t out, int32_t kernel, void* packed) {
  constexpr int kPerEntry = Operands::kStorage == Storage::kPair ? 2 : 1;
  auto* to = static_cast<typename Operands::Entry*>(packed);
  const int64_t taps = int64_t{kernel} * kernel;
  const auto at = [&](int64_t o, int64_t i, int64_t tap) {
    return o < out && i < in ? weight[(o * in + i) * taps + tap] : 0.0f;
  };
  for (int64_t group = 0; group < out; group += kChannelGroup) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t i = 0; i < in; i += kPerEntry) {
        for (int64_t o = group; o < group + kChannelGroup; ++o) {
          if constexpr (kPerEntry == 2) {
            *to++ = bfloat16_bits(at(o, i, tap)) | (bfloat16_bits(at(o, i + 1, tap)) << 16);
          } else if constexpr (Values::kStorage == Storage::kPair) {
            *to++ = bfloat16_rounded(at(o, i, tap));
          } else {
            *to++ = at(o, i, tap);
          }
        }
      }
    }
  }
}
