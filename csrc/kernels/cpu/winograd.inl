// SPDX-License-Identifier: MIT
// 3x3 convolution at stride 1 by Winograd's F(2x2, 3x3): 16 multiplications where the direct way
// has 36, for 2x2 results. fp32 only: the input transform adds four numbers, which bfloat16 would
// round once more. Included inside the anonymous namespace of one translation unit, behind
// convolution.inl.
//
// With d a 4x4 patch of the input, g the 3x3 weight, o the product of elements:
//   out = A^T ((G g G^T) o (B^T d B)) A, summed over input channels before the outer transform.
// Two rows of results are computed per call, kTiles patches at a time. Element e of the 16 is a
// matrix product of its own, [out_channels, in_channels] x [in_channels, patches]; its operand
// stays in the first-level cache, all 16 in the second.
//
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016,
// section 4.1.

constexpr int kTiles = kPixels;
constexpr int kElements = 16;

// Below this many channels the transforms cost more than they save; in narrower images patches are
// idle, and many of the direct way's taps lie outside.
constexpr int32_t kWinogradChannels = 8, kWinogradWidth = 8;

inline bool is_winograd(int32_t in, int32_t out, int32_t kernel, int32_t stride, int32_t width) {
  return kernel == 3 && stride == 1 && in >= kWinogradChannels && out >= kWinogradChannels &&
         width >= kWinogradWidth;
}

// Floats between the elements of a patch or product, [element][channel][kTiles][16]. One line more
// than needed: elements a power of two apart would fall into one set of the first-level cache.
inline int64_t element_stride(int32_t channels) {
  return (int64_t{padded_channels(channels)} * kTiles + 1) * kBlockImages;
}

// Bytes of the patches and products.
inline int64_t winograd_scratch(int32_t in, int32_t out) {
  return kElements * (element_stride(in) + element_stride(out)) * int64_t{sizeof(float)};
}

inline __attribute__((always_inline)) void input_transform(const Float (&d)[4], Float (&t)[4]) {
  t[0] = sub(d[0], d[2]);
  t[1] = add(d[1], d[2]);
  t[2] = sub(d[2], d[1]);
  t[3] = sub(d[1], d[3]);
}

// Column `source` of a window of 4 rows, transformed. What lies outside the image is zero; rows and
// column are looked at only where asked.
template <bool kRows, bool kColumn>
inline __attribute__((always_inline)) void transform_column(const ConvRow& a, int64_t source,
                                                            int64_t at, Float (&t)[4]) {
  if (kColumn && (source < 0 || source >= a.in_width)) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) t[i] = zero();
    return;
  }
  const int64_t pixel = source * a.in_channels * kBlockImages + at;
  Float d[4];
#pragma GCC unroll 4
  for (int dy = 0; dy < 4; ++dy) {
    const auto* row = static_cast<const float*>(a.rows[dy]);
    d[dy] = kRows && row == nullptr ? zero() : load(row + pixel);
  }
  input_transform(d, t);
}

// Transforms the patches of kTiles neighbouring tiles, which begin at column x - 1. kRows: some
// rows may be missing. kInner: all columns but the first and the last are inside the image.
template <bool kRows, bool kInner>
inline void transform_patches(const ConvRow& a, int64_t x, int64_t channel, float* patches) {
  const int64_t element = element_stride(a.in_channels);
  for (int slice = 0; slice < kSlices; ++slice) {
    const int64_t at = channel * kBlockImages + slice * kWidth;
    float* to = patches + channel * kTiles * kBlockImages + slice * kWidth;
    Float columns[4][4];
    transform_column<kRows, true>(a, x - 1, at, columns[0]);
    transform_column<kRows, !kInner>(a, x, at, columns[1]);
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile, to += kBlockImages) {
      transform_column<kRows, !kInner>(a, x + 2 * tile + 1, at, columns[2]);
      if (kInner && tile + 1 < kTiles) {
        transform_column<kRows, false>(a, x + 2 * tile + 2, at, columns[3]);
      } else {
        transform_column<kRows, true>(a, x + 2 * tile + 2, at, columns[3]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Float row[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
        Float t[4];
        input_transform(row, t);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(to + (i * 4 + j) * element, t[j]);
        columns[0][i] = columns[2][i];
        columns[1][i] = columns[3][i];
      }
    }
  }
}

// products[out channel][tile] of one element.
inline void multiply_element(const ConvRow& a, const float* patches, const float* weight,
                             float* products) {
  for (int64_t channel = 0; channel < a.out_channels; channel += kChannelGroup) {
    for (int slice = 0; slice < kSlices; ++slice) {
      Float sums[kTiles][kChannelGroup];
#pragma GCC unroll 8
      for (int p = 0; p < kTiles; ++p) {
#pragma GCC unroll 8
        for (int c = 0; c < kChannelGroup; ++c) sums[p][c] = zero();
      }
      const float* in = patches + slice * kWidth;
      for (int64_t k = 0; k < a.in_channels; ++k, in += kTiles * kBlockImages) {
        Float x[kTiles];
#pragma GCC unroll 8
        for (int p = 0; p < kTiles; ++p) x[p] = load(in + p * kBlockImages);
#pragma GCC unroll 8
        for (int c = 0; c < kChannelGroup; ++c) {
          const Float w = set1(weight[k * kChannelGroup + c]);
#pragma GCC unroll 8
          for (int p = 0; p < kTiles; ++p) sums[p][c] = fmadd(x[p], w, sums[p][c]);
        }
      }
      float* to = products + channel * kTiles * kBlockImages + slice * kWidth;
#pragma GCC unroll 8
      for (int c = 0; c < kChannelGroup; ++c) {
#pragma GCC unroll 8
        for (int p = 0; p < kTiles; ++p) store(to + (c * kTiles + p) * kBlockImages, sums[p][c]);
      }
    }
    weight += a.in_channels * kChannelGroup;
  }
}

// Turns the products of one tile and one group of channels into 2x2 results and adds up their
// statistics. Results beyond the image are dropped.
inline void finish_tile(const ConvRow& a, int64_t x, int64_t channel, int tile, int slice,
                        const float* products) {
  const int64_t element = element_stride(a.out_channels);
  Float results[2][2][kChannelGroup];
#pragma GCC unroll 8
  for (int c = 0; c < kChannelGroup; ++c) {
    const float* from = products + ((channel + c) * kTiles + tile) * kBlockImages + slice * kWidth;
    Float t[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Float m0 = load(from + j * element), m1 = load(from + (4 + j) * element);
      const Float m2 = load(from + (8 + j) * element), m3 = load(from + (12 + j) * element);
      t[0][j] = add(add(m0, m1), m2);
      t[1][j] = sub(sub(m1, m2), m3);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      results[i][0][c] = add(add(t[i][0], t[i][1]), t[i][2]);
      results[i][1][c] = sub(sub(t[i][1], t[i][2]), t[i][3]);
    }
  }
  void* const outs[2] = {a.out, a.out_below};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    if (outs[i] == nullptr) continue;
    ConvRow row = a;
    row.out = outs[i];
    const bool is_pilot = a.is_first && x == 0 && i == 0;
    if (x + 1 < a.out_width) {
      write_tile<FloatValues, 2>(row, x, channel, slice, results[i]);
      if (a.moments != nullptr) add_moments<2>(*a.moments, channel, slice, is_pilot, results[i]);
    } else {
      Float first[1][kChannelGroup];
      for (int c = 0; c < kChannelGroup; ++c) first[0][c] = results[i][0][c];
      write_tile<FloatValues, 1>(row, x, channel, slice, first);
      if (a.moments != nullptr) add_moments<1>(*a.moments, channel, slice, is_pilot, first);
    }
  }
}

void convolve_winograd(const ConvRow& a) {
  auto* patches = static_cast<float*>(a.scratch);
  const int64_t in_element = element_stride(a.in_channels);
  const int64_t out_element = element_stride(a.out_channels);
  const int64_t weights = int64_t{padded_channels(a.out_channels)} * a.in_channels;
  float* products = patches + kElements * in_element;
  const bool has_rows = a.rows[0] != nullptr && a.rows[2] != nullptr && a.rows[3] != nullptr;
  for (int64_t x = 0; x < a.out_width; x += 2 * kTiles) {
    const bool is_inner = x + 2 * kTiles <= a.in_width;
    for (int64_t channel = 0; channel < a.in_channels; ++channel) {
      if (has_rows && is_inner) {
        transform_patches<false, true>(a, x, channel, patches);
      } else if (is_inner) {
        transform_patches<true, true>(a, x, channel, patches);
      } else {
        transform_patches<true, false>(a, x, channel, patches);
      }
    }
    for (int64_t e = 0; e < kElements; ++e) {
      multiply_element(a, patches + e * in_element,
                       static_cast<const float*>(a.weight) + e * weights,
                       products + e * out_element);
    }
    for (int tile = 0; tile < kTiles && x + 2 * tile < a.out_width; ++tile) {
      for (int64_t channel = 0; channel < a.out_channels; channel += kChannelGroup) {
        for (int slice = 0; slice < kSlices; ++slice) {
          finish_tile(a, x + 2 * tile, channel, tile, slice, products);
        }
      }
    }
  }
}

// Packed weight: [element][group of output channels][input channel][kChannelGroup].
inline int64_t winograd_bytes(int32_t in, int32_t out) {
  return int64_t{kElements} * padded_channels(out) * in * int64_t{sizeof(float)};
}

inline void pack_winograd(const float* weight, int32_t in, int32_t out, void* packed) {
  auto* to = static_cast<float*>(packed);
  constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int64_t group = 0; group < out; group += kChannelGroup) {
        for (int64_t k = 0; k < in; ++k) {
          for (int64_t o = group; o < group + kChannelGroup; ++o) {
            double sum = 0;
            for (int y = 0; y < 3 && o < out; ++y) {
              for (int z = 0; z < 3; ++z) {
                sum += kG[i][y] * kG[j][z] * double{weight[(o * in + k) * 9 + y * 3 + z]};
              }
            }
            *to++ = static_cast<float>(sum);
          }
        }
      }
    }
  }
}

constexpr PairKernels kWinograd = {&is_winograd, &convolve_winograd, &winograd_bytes,
                                   &pack_winograd, &winograd_scratch};
