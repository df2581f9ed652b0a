// SPDX-License-Identifier: MIT
// Everything but convolutions: combination, pools, statistics, and the loading of images. Included
// inside the anonymous namespace of one translation unit, behind convolution.inl.

// kTerms < 0: as many as `a` says.
template <class Values, class Operands, int kTerms, bool kRaw, bool kOperand, bool kLinear>
void combine_terms(const CombineRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t operand_lines = lines(Operands::kStorage, a.channels);
  const int num_terms = kTerms < 0 ? a.num_terms : kTerms;
  for (int64_t x = 0; x < a.width; ++x) {
    for (int64_t line = 0; line < num_lines; ++line) {
      const int64_t at = (x * num_lines + line) * kBlockImages;
      for (int64_t slice = 0; slice < kBlockImages; slice += kWidth) {
        Float sum[kChannels];
        for (int c = 0; c < kChannels; ++c) sum[c] = set1(a.shift[line * kChannels + c]);
#pragma GCC unroll 4
        for (int t = 0; t < num_terms; ++t) {
          const Term& term = a.terms[t];
          Float value[kChannels];
          __builtin_prefetch(static_cast<const Entry*>(term.row) + at + kAhead);
          Values::read(static_cast<const Entry*>(term.row) + at + slice, value);
          for (int c = 0; c < kChannels; ++c) {
            sum[c] = fmadd(value[c], set1(term.scale[line * kChannels + c]), sum[c]);
          }
        }
        if constexpr (kRaw) Values::write(static_cast<Entry*>(a.raw) + at + slice, sum);
        if constexpr (kOperand) {
          if constexpr (!kLinear) {
            for (int c = 0; c < kChannels; ++c) sum[c] = relu(sum[c]);
          }
          write_operand<Values, Operands>(a.operand, x, line, operand_lines, slice, sum);
        }
      }
    }
  }
}

template <class Values, class Operands, bool kRaw, bool kOperand, bool kLinear>
void combine_into(const CombineRow& a) {
  switch (a.num_terms) {
    case 1:
      return combine_terms<Values, Operands, 1, kRaw, kOperand, kLinear>(a);
    case 2:
      return combine_terms<Values, Operands, 2, kRaw, kOperand, kLinear>(a);
    case 3:
      return combine_terms<Values, Operands, 3, kRaw, kOperand, kLinear>(a);
    default:
      return combine_terms<Values, Operands, -1, kRaw, kOperand, kLinear>(a);
  }
}

template <class Values, class Operands>
void combine(const CombineRow& a) {
  if (a.is_linear && a.operand != nullptr && a.raw == nullptr) {
    return combine_into<Values, Operands, false, true, true>(a);
  }
  if (a.raw != nullptr && a.operand != nullptr) {
    return combine_into<Values, Operands, true, true, false>(a);
  }
  if (a.raw != nullptr) return combine_into<Values, Operands, true, false, false>(a);
  if (a.operand != nullptr) return combine_into<Values, Operands, false, true, false>(a);
}

struct Mean {
  static Float join(Float a, Float b) { return add(a, b); }
  static Float finish(Float sum, int64_t count) {
    return mul(sum, set1(1.0f / static_cast<float>(count)));
  }
};
struct Maximum {
  static Float join(Float a, Float b) { return max_nan(a, b); }
  static Float finish(Float maximum, int64_t) { return maximum; }
};

// Joins a column of the window: the rows that lie inside the image, from above.
template <class Values, class Rule>
inline void join_column(const PoolRow& a, int64_t at, Float (&joined)[Values::kChannels]) {
  bool is_empty = true;
  for (int64_t dy = 0; dy < a.kernel; ++dy) {
    if (a.rows[dy] == nullptr) continue;
    Float value[Values::kChannels];
    Values::read(static_cast<const typename Values::Entry*>(a.rows[dy]) + at, value);
    for (int c = 0; c < Values::kChannels; ++c) {
      joined[c] = is_empty ? value[c] : Rule::join(joined[c], value[c]);
    }
    is_empty = false;
  }
}

// Kernel 3: columns are joined once and kept while the window moves on, some lines at a time, so
// that memory is read in long runs.
template <class Values, class Rule>
void pool_row3(const PoolRow& a, int64_t num_rows) {
  constexpr int kChannels = Values::kChannels;
  constexpr int64_t kLines = 16, kFloats = kLines * kBlockImages;
  alignas(kLineBytes) float columns[3][kChannels][kFloats];
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  auto* out = static_cast<typename Values::Entry*>(a.out);
  for (int64_t first = 0; first < pitch; first += kFloats) {
    const int64_t count = pitch - first < kFloats ? pitch - first : kFloats;
    for (int64_t at = 0; at < count; at += kWidth) {
      Float here[kChannels] = {};
      join_column<Values, Rule>(a, first + at, here);
      for (int c = 0; c < kChannels; ++c) store(&columns[0][c][at], here[c]);
    }
    for (int64_t x = 0; x < a.width; ++x) {
      const bool has_before = x > 0, has_next = x + 1 < a.width;
      float (&before)[kChannels][kFloats] = columns[(x + 2) % 3];
      float (&here)[kChannels][kFloats] = columns[x % 3];
      float (&next)[kChannels][kFloats] = columns[(x + 1) % 3];
      const int64_t of_window = num_rows * (1 + has_before + has_next);
      for (int64_t at = 0; at < count; at += kWidth) {
        Float value[kChannels], added[kChannels] = {};
        if (has_next) join_column<Values, Rule>(a, first + at + (x + 1) * pitch, added);
        for (int c = 0; c < kChannels; ++c) {
          value[c] = load(&here[c][at]);
          if (has_before) value[c] = Rule::join(load(&before[c][at]), value[c]);
          if (has_next) {
            value[c] = Rule::join(value[c], added[c]);
            store(&next[c][at], added[c]);
          }
          value[c] = Rule::finish(value[c], of_window);
        }
        Values::write(out + x * pitch + first + at, value);
      }
    }
  }
}

template <class Values, class Rule>
void pool_row(const PoolRow& a) {
  constexpr int kChannels = Values::kChannels;
  int64_t num_rows = 0;
  for (int64_t dy = 0; dy < a.kernel; ++dy) num_rows += a.rows[dy] != nullptr;
  if (a.kernel == 3) return pool_row3<Values, Rule>(a, num_rows);
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t pitch = num_lines * kBlockImages, pad = a.kernel / 2;
  for (int64_t x = 0; x < a.width; ++x) {
    const int64_t begin = x < pad ? 0 : x - pad;
    const int64_t end = x + pad + 1 < a.width ? x + pad + 1 : a.width;
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float value[kChannels] = {};
      for (int64_t source = begin; source < end; ++source) {
        Float column[kChannels] = {};
        join_column<Values, Rule>(a, source * pitch + at, column);
        for (int c = 0; c < kChannels; ++c) {
          value[c] = source == begin ? column[c] : Rule::join(value[c], column[c]);
        }
      }
      for (int c = 0; c < kChannels; ++c) {
        value[c] = Rule::finish(value[c], num_rows * (end - begin));
      }
      Values::write(static_cast<typename Values::Entry*>(a.out) + x * pitch + at, value);
    }
  }
}

template <class Values, class Operands>
void halve(const HalveRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t operand_lines = lines(Operands::kStorage, a.channels);
  for (int64_t x = 0; 2 * x < a.in_width; ++x) {
    for (int64_t line = 0; line < num_lines; ++line) {
      for (int64_t slice = 0; slice < kBlockImages; slice += kWidth) {
        Float sum[kChannels] = {};
        int64_t count = 0;
        for (int dy = 0; dy < 2; ++dy) {
          for (int64_t source = 2 * x; source < 2 * x + 2 && source < a.in_width; ++source) {
            if (a.rows[dy] == nullptr) continue;
            Float value[kChannels];
            Values::read(static_cast<const Entry*>(a.rows[dy]) +
                             (source * num_lines + line) * kBlockImages + slice,
                         value);
            for (int c = 0; c < kChannels; ++c) {
              sum[c] = count == 0 ? value[c] : add(sum[c], value[c]);
            }
            ++count;
          }
        }
        for (int c = 0; c < kChannels; ++c) {
          sum[c] = mul(sum[c], set1(1.0f / static_cast<float>(count)));
        }
        write_operand<Values, Operands>(a.out, x, line, operand_lines, slice, sum);
      }
    }
  }
}

template <class Values>
void measure(const ReduceRow& a) {
  constexpr int kChannels = Values::kChannels;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t x = 0; x < a.width; ++x) {
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float value[kChannels];
      Values::read(static_cast<const typename Values::Entry*>(a.row) + x * pitch + at, value);
      const int64_t slice = at % kBlockImages, line = at / kBlockImages;
      for (int c = 0; c < kChannels; ++c) {
        const int64_t to = (line * kChannels + c) * kBlockImages + slice;
        const Moments& m = *a.moments;
        if (a.is_first && x == 0) store(m.pilot + to, value[c]);
        const Float centred = sub(value[c], load(m.pilot + to));
        store(m.sum + to, add(load(m.sum + to), centred));
        store(m.square + to, fmadd(centred, centred, load(m.square + to)));
      }
    }
  }
}

template <class Values, bool kLinear>
void accumulate_row(const ReduceRow& a) {
  constexpr int kChannels = Values::kChannels;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t at = 0; at < pitch; at += kWidth) {
    const int64_t channel = at / kBlockImages * kChannels;
    Float sum[kChannels];
    for (int c = 0; c < kChannels; ++c) sum[c] = zero();
    for (int64_t x = 0; x < a.width; ++x) {
      Float value[kChannels];
      Values::read(static_cast<const typename Values::Entry*>(a.row) + x * pitch + at, value);
      for (int c = 0; c < kChannels; ++c) {
        const Float scale = set1(a.scale[channel + c]), shift = set1(a.shift[channel + c]);
        const Float z = fmadd(value[c], scale, shift);
        sum[c] = add(sum[c], kLinear ? z : relu(z));
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      add_to(a.sums + (channel + c) * kBlockImages + at % kBlockImages, sum[c]);
    }
  }
}

template <class Values>
void accumulate(const ReduceRow& a) {
  a.is_linear ? accumulate_row<Values, true>(a) : accumulate_row<Values, false>(a);
}

void flush(const Moments& moments, int32_t channels) {
  const int64_t count = int64_t{padded_channels(channels)} * kBlockImages;
  for (int64_t at = 0; at < count; at += kWidth) {
    add_to(moments.total + at, load(moments.sum + at));
    add_to(moments.total_square + at, load(moments.square + at));
    store(moments.sum + at, zero());
    store(moments.square + at, zero());
  }
}

// Every image of every block has equally many pixels, so Chan's rule for merging (count, mean, sum
// of squared deviations) reduces to means of means, and the deviations of the means come on top.
void merge(const MergeMoments& a) {
  const double pixels = static_cast<double>(a.pixels);
  double images = 0;
  for (int32_t b = 0; b < a.num_blocks; ++b) images += a.images[b];
  for (int32_t channel = 0; channel < a.channels; ++channel) {
    const int64_t row = int64_t{channel} * kBlockImages;
    double mean = 0, within = 0, between = 0;
    for (int32_t b = 0; b < a.num_blocks; ++b) {
      const Moments& m = a.blocks[b];
      for (int32_t i = 0; i < a.images[b]; ++i) {
        const double offset = m.total[row + i] / pixels;
        mean += double{m.pilot[row + i]} + offset;
        within += m.total_square[row + i] - offset * m.total[row + i];
      }
    }
    mean /= images;
    for (int32_t b = 0; b < a.num_blocks; ++b) {
      const Moments& m = a.blocks[b];
      for (int32_t i = 0; i < a.images[b]; ++i) {
        const double apart = double{m.pilot[row + i]} + m.total[row + i] / pixels - mean;
        between += apart * apart;
      }
    }
    a.mean[channel] = mean;
    a.variance[channel] = (within / pixels + between) / images;
  }
}

template <class Values, class Operands>
void load_images(const float* images, int32_t count, int32_t channels, int32_t height,
                 int32_t width, void* out) {
  constexpr int kPerEntry = Operands::kStorage == Storage::kPair ? 2 : 1;
  const int64_t pixels = int64_t{height} * width;
  auto* to = static_cast<typename Operands::Entry*>(out);
  const auto at = [&](int64_t image, int64_t channel, int64_t pixel) {
    const bool exists = image < count && channel < channels;
    return exists ? images[(image * channels + channel) * pixels + pixel] : 0.0f;
  };
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t channel = 0; channel < channels; channel += kPerEntry) {
      for (int64_t image = 0; image < kBlockImages; ++image) {
        if constexpr (kPerEntry == 2) {
          *to++ = bfloat16_bits(at(image, channel, pixel)) |
                  (bfloat16_bits(at(image, channel + 1, pixel)) << 16);
        } else if constexpr (Values::kStorage == Storage::kPair) {
          *to++ = bfloat16_rounded(at(image, channel, pixel));
        } else {
          *to++ = at(image, channel, pixel);
        }
      }
    }
  }
}

inline void no_thread_state() {}

template <class Values, class Operands>
constexpr GradientKernels kGradients = {&finish_gradient<Values, Operands>,
                                        &avg_pool_gradient<Values>,
                                        &max_pool_gradient<Values>,
                                        &halve_gradient<Values>,
                                        &head_sums<Values>,
                                        &head_gradient<Values>,
                                        &flush_sums,
                                        &packed_gradient_bytes<Operands>,
                                        &pack_gradient<Operands>,
                                        &packed_input_bytes<Operands>,
                                        &pack_input<Operands>,
                                        &weight_gradient<Operands>,
                                        &convolve_transposed<Values, Operands>,
                                        &packed_bytes<Operands>,
                                        &pack_weight<Values, Operands>,
                                        Steps<Operands>::kPixelsOfStep,
                                        &max_halve_gradient<Values>};

template <class Values, class Operands>
constexpr Kernels make_kernels(const PairKernels* pairs = nullptr) {
  return {Operands::kStorage,
          &combine<Values, Operands>,
          &convolve<Values, Operands>,
          &pool_row<Values, Mean>,
          &pool_row<Values, Maximum>,
          &halve<Values, Operands>,
          &measure<Values>,
          &accumulate<Values>,
          &flush,
          &merge,
          &load_images<Values, Operands>,
          &packed_bytes<Operands>,
          &pack_weight<Values, Operands>,
          &no_thread_state,
          &no_thread_state,
          pairs,
          &kGradients<Values, Operands>,
          &combine_ranged<Values, Operands>,
          &max_halve<Values>};
}
