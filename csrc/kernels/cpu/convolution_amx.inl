// SPDX-License-Identifier: MIT
// Convolution of one row of a block with AMX tiles, and the packing of its weights. Included inside
// the anonymous namespace of one translation unit, behind convolution.inl and a header of tiles.
//
// Sixteen lines in a row are a tile of inputs as they lie in memory: 32 channels x 16 images. A
// tile of weights is 16 output channels x those 32 channels, and their product is 16 output
// channels x 16 images: one row of a tile of sums is one channel's line of floats, so that what
// follows the products is vertical, as everywhere in this engine.
//
// A block is kPx <= 4 neighbouring output pixels x 16 output channels. Its sums are tiles 0 to 3,
// the weights of the taps of one image row are tiles 4 to 6, and tile 7 walks along the inputs of
// that row: each is loaded once and meets the weights of all taps under which it lies. The output
// channels are the inner loop, so that the inputs of a block stay in the first-level cache.
//
// 16 input channels are half a tile, so a tile of inputs is two neighbouring pixels ("paired"). It
// may begin at any pixel; a row of a 3x3 window is the pairs (left, middle) and (middle, right),
// the second with zero weights for the middle. Nothing outside the rows is read, and no images mix;
// but zero times infinity is NaN, so where a sum would be infinite it may be NaN, and in a paired
// 1x1 convolution an infinity or NaN makes NaN of the results of the pixel beside it, too.

constexpr int kTilePixels = 4;
constexpr int kTileChannels = 16;
constexpr int kWeightTile = 4;
constexpr int kInputTile = 7;

// The rule: shapes that tiles fill without rests, of the kernels with a plan for their taps. It
// decides on the layout of the packed weights, so it can know neither width nor stride. Each of
// these shapes gains, even where half of a tile is zeros: a product of tiles takes 16 cycles and
// stands for 256 dot products of vectors. Other shapes go the way of AVX-512.
inline bool uses_tiles(int32_t in, int32_t out, int32_t kernel) {
  return (in == 16 || in % 32 == 0) && out % kTileChannels == 0 && (kernel == 1 || kernel == 3);
}

// The geometry of the taps in one row of the window.
template <bool kIsPaired, int kKernelSize>
struct TilePlan {
  static constexpr bool kPaired = kIsPaired;
  static constexpr int kKernel = kKernelSize;
  static constexpr int kPad = kKernel / 2;
  // Tiles of inputs that a pixel needs, at successive pixels from `-kPad` on, and the weights for
  // them. A paired plan has one more tile of weights, for the border.
  static constexpr int kTaps = kPaired ? (kKernel + 1) / 2 : kKernel;
  static constexpr int kWeights = kPaired ? kTaps + 1 : kTaps;
  // How far the last tile of inputs reaches to the right of an output's pixel.
  static constexpr int kReach = kPaired ? 1 : kPad;
};

template <int kIndex>
struct TileIndex {
  static constexpr int kValue = kIndex;
};
// Calls body(TileIndex<k>) for k in [kBegin, kEnd): the numbers of tiles are parts of instructions.
template <int kBegin, int kEnd, class Body>
inline __attribute__((always_inline)) void for_tiles(const Body& body) {
  if constexpr (kBegin < kEnd) {
    body(TileIndex<kBegin>{});
    for_tiles<kBegin + 1, kEnd>(body);
  }
}

// Sums over the taps of one row of the window and 16 lines of their pixels. `weight` is the tiles
// of the plan; `input` is the pixel in the middle of the first window.
template <class Plan, int kStride, int kPx, bool kLeft, bool kRight>
inline __attribute__((always_inline)) void add_tile_taps(const uint32_t* input,
                                                         const uint32_t* weight, int64_t pitch) {
  constexpr int kNumInputs = (kPx - 1) * kStride + Plan::kTaps;
  constexpr bool kUsesBorder = Plan::kPaired && (Plan::kKernel == 3 ? kLeft : kRight);
  for_tiles<0, Plan::kTaps + kUsesBorder>([&](auto tap) __attribute__((always_inline)) {
    load_tile<kWeightTile + tap.kValue>(weight + tap.kValue * kTileEntries);
  });
  if constexpr (Plan::kPaired && Plan::kKernel == 1) {
    for_tiles<0, kPx>([&](auto p) __attribute__((always_inline)) {
      // The pair that begins at the last pixel of a row would end outside: it is the right one of
      // the pair before, under the weights for the border.
      constexpr bool kLast = kRight && p.kValue == kPx - 1;
      load_tile<kInputTile>(input + (p.kValue * kStride - kLast) * pitch);
      dot_tiles<p.kValue, kWeightTile + kLast, kInputTile>();
    });
  } else {
    for_tiles<kLeft, kNumInputs - kRight>([&](auto i) __attribute__((always_inline)) {
      constexpr int kAt = i.kValue;
      constexpr bool kIsRead = kAt % kStride < Plan::kTaps;
      if constexpr (kIsRead) load_tile<kInputTile>(input + (kAt - Plan::kPad) * pitch);
      for_tiles<0, kPx>([&](auto p) __attribute__((always_inline)) {
        constexpr int kTap = kAt - p.kValue * kStride;
        if constexpr (kTap >= 0 && kTap < Plan::kTaps) {
          // The first pixel has no pair (left, middle), so its other one counts in full.
          constexpr bool kFull = Plan::kPaired && kLeft && p.kValue == 0;
          dot_tiles<p.kValue, kWeightTile + (kFull ? Plan::kTaps : kTap), kInputTile>();
        }
      });
    });
  }
}

// Writes the sums of a block as values and adds them to the statistics. Sums pass through memory:
// there is no other way out of a tile.
template <int kPx>
void finish_tiles(const ConvRow& a, int64_t x, int64_t channel) {
  alignas(64) float tiles[kPx][kTileEntries];
  for_tiles<0, kPx>([&](auto p)
                        __attribute__((always_inline)) { store_tile<p.kValue>(tiles[p.kValue]); });
  for (int64_t first = 0; first < kTileChannels; first += kChannelGroup) {
    Float sums[kPx][kChannelGroup];
#pragma GCC unroll 4
    for (int p = 0; p < kPx; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < kChannelGroup; ++c) {
        sums[p][c] = load(tiles[p] + (first + c) * kBlockImages);
      }
    }
    write_tile<PairValues, kPx>(a, x, channel + first, 0, sums);
    if (a.moments != nullptr) {
      add_moments<kPx>(*a.moments, channel + first, 0, a.is_first && x == 0, sums);
    }
  }
}

template <class Plan, int kStride, int kPx, bool kLeft, bool kRight>
void tile_block(const ConvRow& a, int64_t x) {
  const int64_t pitch = int64_t{a.in_channels} / 2 * kBlockImages;  // of a pixel
  const int64_t begin = x * kStride * pitch;
  const auto* weight = static_cast<const uint32_t*>(a.weight);
  for (int64_t channel = 0; channel < a.out_channels; channel += kTileChannels) {
    for_tiles<0, kPx>([&](auto p) __attribute__((always_inline)) { zero_tile<p.kValue>(); });
    for (int dy = 0; dy < Plan::kKernel; ++dy) {
      const auto* row = static_cast<const uint32_t*>(a.rows[dy]);
      // A pixel is whole tiles; or half of one, and the tile reaches into the next pixel.
      for (int64_t at = 0; at < pitch; at += kTileEntries) {
        if (row != nullptr) {
          add_tile_taps<Plan, kStride, kPx, kLeft, kRight>(row + begin + at, weight, pitch);
        }
        weight += Plan::kWeights * kTileEntries;
      }
    }
    finish_tiles<kPx>(a, x, channel);
  }
}

template <class Plan, int kStride, int kPx>
void tile_blocks(const ConvRow& a, int64_t x) {
  const bool is_left = Plan::kPad > 0 && x == 0;
  const bool is_right = Plan::kReach > 0 && (x + kPx - 1) * kStride + Plan::kReach >= a.in_width;
  if (is_left && is_right) {
    tile_block<Plan, kStride, kPx, true, true>(a, x);
  } else if (is_left) {
    tile_block<Plan, kStride, kPx, true, false>(a, x);
  } else if (is_right) {
    tile_block<Plan, kStride, kPx, false, true>(a, x);
  } else {
    tile_block<Plan, kStride, kPx, false, false>(a, x);
  }
}

template <class Plan, int kStride>
void convolve_tile_row(const ConvRow& a) {
  int64_t x = 0;
  for (; x + kTilePixels <= a.out_width; x += kTilePixels) {
    tile_blocks<Plan, kStride, kTilePixels>(a, x);
  }
  switch (a.out_width - x) {
    case 3:
      return tile_blocks<Plan, kStride, 3>(a, x);
    case 2:
      return tile_blocks<Plan, kStride, 2>(a, x);
    case 1:
      return tile_blocks<Plan, kStride, 1>(a, x);
    default:
      return;
  }
}

template <class Plan>
void convolve_plan(const ConvRow& a) {
  return a.stride == 1 ? convolve_tile_row<Plan, 1>(a) : convolve_tile_row<Plan, 2>(a);
}

// A row of one pixel has no pair: it gets a copy with a second pixel of zeros, whose own results
// nobody asks for.
template <class Plan>
void convolve_lone_pixel(const ConvRow& a) {
  alignas(64) uint32_t copies[Plan::kKernel][kTileEntries];
  const void* rows[Plan::kKernel];
  for (int dy = 0; dy < Plan::kKernel; ++dy) {
    rows[dy] = a.rows[dy] == nullptr ? nullptr : copies[dy];
    if (a.rows[dy] == nullptr) continue;
    __builtin_memcpy(copies[dy], a.rows[dy], sizeof copies[dy] / 2);
    __builtin_memset(copies[dy] + kTileEntries / 2, 0, sizeof copies[dy] / 2);
  }
  ConvRow pair = a;
  pair.rows = rows;
  pair.in_width = 2;
  convolve_tile_row<Plan, 1>(pair);
}

void convolve_tiles(const ConvRow& a) {
  if (!uses_tiles(a.in_channels, a.out_channels, a.kernel)) {
    return convolve<PairValues, PairOperands>(a);
  }
  if (a.in_channels == 16) {
    if (a.in_width == 1) {
      return a.kernel == 1 ? convolve_lone_pixel<TilePlan<true, 1>>(a)
                           : convolve_lone_pixel<TilePlan<true, 3>>(a);
    }
    return a.kernel == 1 ? convolve_plan<TilePlan<true, 1>>(a)
                         : convolve_plan<TilePlan<true, 3>>(a);
  }
  return a.kernel == 1 ? convolve_plan<TilePlan<false, 1>>(a)
                       : convolve_plan<TilePlan<false, 3>>(a);
}

int64_t packed_bytes_tiles(int32_t in, int32_t out, int32_t kernel) {
  if (!uses_tiles(in, out, kernel)) return packed_bytes<PairOperands>(in, out, kernel);
  const int64_t tiles_of_row = in == 16 ? (kernel == 3 ? 3 : 2) : int64_t{kernel} * (in / 32);
  return out / kTileChannels * kernel * tiles_of_row * kTileRows * kTileRowBytes;
}

// Packed weight: [16 output channels][row of the window][32 input channels][weights of the plan],
// each a tile [output channel][pair of input channels].
void pack_weight_tiles(const float* weight, int32_t in, int32_t out, int32_t kernel, void* packed) {
  if (!uses_tiles(in, out, kernel)) {
    return pack_weight<PairValues, PairOperands>(weight, in, out, kernel, packed);
  }
  auto* to = static_cast<uint32_t*>(packed);
  // Half a row of a tile: 16 input channels of one tap; zeros for tap -1.
  const auto put_half = [&](int64_t o, int64_t first, int64_t dy, int64_t dx) {
    for (int64_t i = first; i < first + 16; i += 2) {
      const float* pair = weight + ((o * in + i) * kernel + dy) * kernel + dx;
      *to++ = dx < 0 ? 0 : bfloat16_bits(pair[0]) | (bfloat16_bits(pair[kernel * kernel]) << 16);
    }
  };
  // The taps of the two pixels of a pair. With kernel 3: the first pair, the second pair, the
  // second pair at the left border; with kernel 1: a pair's first pixel, its second one.
  constexpr int8_t kPairs[2][3][2] = {{{0, -1}, {-1, 0}, {}}, {{0, 1}, {-1, 2}, {1, 2}}};
  const int num_pairs = kernel == 3 ? 3 : 2;
  for (int64_t channel = 0; channel < out; channel += kTileChannels) {
    for (int64_t dy = 0; dy < kernel; ++dy) {
      if (in == 16) {
        for (int pair = 0; pair < num_pairs; ++pair) {
          for (int64_t o = channel; o < channel + kTileChannels; ++o) {
            for (const int8_t dx : kPairs[kernel == 3][pair]) put_half(o, 0, dy, dx);
          }
        }
        continue;
      }
      for (int64_t i = 0; i < in; i += 32) {
        for (int64_t dx = 0; dx < kernel; ++dx) {
          for (int64_t o = channel; o < channel + kTileChannels; ++o) {
            put_half(o, i, dy, dx);
            put_half(o, i + 16, dy, dx);
          }
        }
      }
    }
  }
}

// The kernels of a translation unit with convolutions on tiles.
constexpr Kernels with_tiles(Kernels kernels) {
  kernels.convolve = &convolve_tiles;
  kernels.packed_bytes = &packed_bytes_tiles;
  kernels.pack_weight = &pack_weight_tiles;
  kernels.enter_thread = &configure_tiles;
  kernels.leave_thread = &release_tiles;
  return kernels;
}
