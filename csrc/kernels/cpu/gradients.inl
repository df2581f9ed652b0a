// SPDX-License-Identifier: MIT
// Gradients of everything but weights. Included inside the anonymous namespace of one translation
// unit, behind weight_gradient.inl.

// Reads the channels of a value's line from operands, which may have one line for each channel.
template <class Values, class Operands>
inline void read_operand(const typename Operands::Entry* row, int64_t x, int64_t line,
                         int64_t operand_lines, int64_t slice, Float (&value)[Values::kChannels]) {
  constexpr int kChannels = Values::kChannels;
  if constexpr (Operands::kStorage == Values::kStorage) {
    Values::read(reinterpret_cast<const typename Values::Entry*>(row) +
                     (x * operand_lines + line) * kBlockImages + slice,
                 value);
  } else {
    for (int c = 0; c < kChannels; ++c) {
      const int64_t own = line * kChannels + c;
      value[c] = own < operand_lines ? load(reinterpret_cast<const float*>(row) +
                                            (x * operand_lines + own) * kBlockImages + slice)
                                     : zero();
    }
  }
}

// Pixels whose sums are held in registers together.
constexpr int kRun = 4;

// A term that is a range, was rectified or has a sum of its own.
template <class Values, int kPx>
inline void finish_ranged_term(const FinishGradientRow& a, const GradientTerm& term, int64_t x,
                               int64_t line, int64_t slice,
                               const Float (&out)[kPx][Values::kChannels]) {
  constexpr int64_t kChannels = Values::kChannels;
  const bool is_whole = term.channels == 0;
  const int32_t channels = is_whole ? a.channels : term.channels;
  const int64_t offset = is_whole ? 0 : int64_t{term.from} - term.to;
  const int64_t begin = is_whole ? 0 : term.to;
  const int64_t end = is_whole ? a.channels : begin + term.count;
  const int64_t first = line * kChannels;
  if (first + kChannels <= begin || first >= end) return;
  const bool is_line = offset % kChannels == 0;  // both channels come from one line
  const int64_t pitch = int64_t{lines(Values::kStorage, channels)} * kBlockImages;
  Float values[kPx][kChannels];
  for (int p = 0; p < kPx && is_line; ++p) {
    Values::read(static_cast<const typename Values::Entry*>(term.row) + (x + p) * pitch +
                     (first + offset) / kChannels * kBlockImages + slice,
                 values[p]);
  }
  for (int c = 0; c < kChannels; ++c) {
    if (first + c < begin || first + c >= end) continue;
    const int64_t own = first + c + offset, to = own * kBlockImages + slice;
    const Float centre = set1(term.centre[own]);
    Float dot = load(term.dot + to), gradient[kPx], sum = zero();
    for (int p = 0; p < kPx; ++p) {
      if (!is_line) {
        values[p][c] = read_channel<Values>(term.row, x + p, channels, own, slice);
      }
      gradient[p] = out[p][c];
    }
    if (term.scale != nullptr) {
      const Float scale = set1(term.scale[own]), shift = set1(term.shift[own]);
      for (int p = 0; p < kPx; ++p) {
        gradient[p] = where_positive(fmadd(values[p][c], scale, shift), gradient[p]);
      }
    }
    for (int p = 0; p < kPx; ++p) {
      sum = add(sum, gradient[p]);
      dot = fmadd(gradient[p], sub(values[p][c], centre), dot);
    }
    store(term.dot + to, dot);
    if (term.sum != nullptr) store(term.sum + to, add(load(term.sum + to), sum));
  }
}

// kPlain: no term is for finish_ranged_term.
template <class Values, class Operands, int kPx, bool kPlain>
inline void finish_pixels(const FinishGradientRow& a, int64_t x, int64_t line, int64_t slice) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t operand_lines = lines(Operands::kStorage, a.channels);
  const int64_t at = (x * num_lines + line) * kBlockImages + slice;
  const int64_t pitch = num_lines * kBlockImages;
  const int64_t channel = line * kChannels;
  const int64_t to = channel * kBlockImages + slice;
  Float out[kPx][kChannels];
  for (int p = 0; p < kPx; ++p) {
    for (int c = 0; c < kChannels; ++c) out[p][c] = zero();
  }
  for (int k = 0; k < a.num_masked; ++k) {
    for (int p = 0; p < kPx; ++p) {
      Float value[kChannels];
      Values::read(static_cast<const Entry*>(a.masked[k]) + at + p * pitch, value);
      for (int c = 0; c < kChannels; ++c) out[p][c] = add(out[p][c], value[c]);
    }
  }
  if (a.num_masked > 0) {
    for (int p = 0; p < kPx; ++p) {
      Float operand[kChannels];
      read_operand<Values, Operands>(static_cast<const typename Operands::Entry*>(a.operand), x + p,
                                     line, operand_lines, slice, operand);
      for (int c = 0; c < kChannels; ++c) out[p][c] = where_positive(operand[c], out[p][c]);
    }
  }
  for (int k = 0; k < a.num_plain; ++k) {
    const Float weight = set1(a.plain[k].weight);
    for (int p = 0; p < kPx; ++p) {
      Float value[kChannels];
      Values::read(static_cast<const Entry*>(a.plain[k].row) + at + p * pitch, value);
      for (int c = 0; c < kChannels; ++c) out[p][c] = fmadd(value[c], weight, out[p][c]);
    }
  }
  for (int p = 0; p < kPx; ++p) {
    Values::write(static_cast<Entry*>(a.out) + at + p * pitch, out[p]);
  }
  for (int c = 0; c < kChannels; ++c) {
    Float sum = load(a.sum + to + c * kBlockImages);
    for (int p = 0; p < kPx; ++p) sum = add(sum, out[p][c]);
    store(a.sum + to + c * kBlockImages, sum);
  }
  for (int t = 0; t < a.num_terms; ++t) {
    const GradientTerm& term = a.terms[t];
    if constexpr (!kPlain) {
      finish_ranged_term<Values, kPx>(a, term, x, line, slice, out);
      continue;
    }
    Float dot[kChannels];
    for (int c = 0; c < kChannels; ++c) dot[c] = load(term.dot + to + c * kBlockImages);
    for (int p = 0; p < kPx; ++p) {
      Float value[kChannels];
      Values::read(static_cast<const Entry*>(term.row) + at + p * pitch, value);
      for (int c = 0; c < kChannels; ++c) {
        dot[c] = fmadd(out[p][c], sub(value[c], set1(term.centre[channel + c])), dot[c]);
      }
    }
    for (int c = 0; c < kChannels; ++c) store(term.dot + to + c * kBlockImages, dot[c]);
  }
}

template <class Values, class Operands, bool kPlain>
void finish_row(const FinishGradientRow& a) {
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  for (int64_t x = 0; x < a.width; x += kRun) {
    for (int64_t line = 0; line < num_lines; ++line) {
      for (int64_t slice = 0; slice < kBlockImages; slice += kWidth) {
        if (x + kRun <= a.width) {
          finish_pixels<Values, Operands, kRun, kPlain>(a, x, line, slice);
        } else {
          for (int64_t p = x; p < a.width; ++p) {
            finish_pixels<Values, Operands, 1, kPlain>(a, p, line, slice);
          }
        }
      }
    }
  }
}

template <class Values, class Operands>
void finish_gradient(const FinishGradientRow& a) {
  bool is_plain = true;
  for (int t = 0; t < a.num_terms; ++t) {
    const GradientTerm& term = a.terms[t];
    is_plain = is_plain && term.sum == nullptr && term.scale == nullptr && term.channels == 0;
  }
  is_plain ? finish_row<Values, Operands, true>(a) : finish_row<Values, Operands, false>(a);
}

template <class Values>
void avg_pool_gradient(const PoolGradientRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  const int64_t pad = a.kernel / 2;
  for (int64_t x = 0; x < a.width; ++x) {
    const int64_t begin = x - pad < 0 ? 0 : x - pad;
    const int64_t end = x + pad + 1 > a.width ? a.width : x + pad + 1;
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float sum[kChannels];
      for (int c = 0; c < kChannels; ++c) sum[c] = zero();
      for (int64_t source = begin; source < end; ++source) {
        const int64_t first = source - pad < 0 ? 0 : source - pad;
        const int64_t last = source + pad + 1 > a.width ? a.width : source + pad + 1;
        for (int64_t dy = 0; dy < a.kernel; ++dy) {
          if (a.rows[dy] == nullptr) continue;
          const auto of_window = static_cast<float>((last - first) * a.num_rows[dy]);
          Float value[kChannels];
          Values::read(static_cast<const Entry*>(a.rows[dy]) + source * pitch + at, value);
          for (int c = 0; c < kChannels; ++c) {
            sum[c] = fmadd(value[c], set1(1.0f / of_window), sum[c]);
          }
        }
      }
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, sum);
    }
  }
}

template <class Values>
void halve_gradient(const HalveGradientRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t x = 0; x < a.width; ++x) {
    const int num_columns = (x | 1) < a.width ? 2 : 1;
    const Float share = set1(1.0f / static_cast<float>(num_columns * a.num_rows));
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float value[kChannels];
      Values::read(static_cast<const Entry*>(a.row) + x / 2 * pitch + at, value);
      for (int c = 0; c < kChannels; ++c) value[c] = mul(value[c], share);
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, value);
    }
  }
}

template <class Values, bool kLinear>
void head_sums_row(const HeadGradientRow& a) {
  constexpr int kChannels = Values::kChannels;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t at = 0; at < pitch; at += kWidth) {
    const int64_t channel = at / kBlockImages * kChannels;
    Float sum[kChannels], dot[kChannels];
    for (int c = 0; c < kChannels; ++c) sum[c] = dot[c] = zero();
    for (int64_t x = 0; x < a.width; ++x) {
      Float value[kChannels];
      Values::read(static_cast<const typename Values::Entry*>(a.row) + x * pitch + at, value);
      for (int c = 0; c < kChannels; ++c) {
        const Float z = fmadd(value[c], set1(a.scale[channel + c]), set1(a.shift[channel + c]));
        const Float passes = kLinear ? set1(1.0f) : is_positive(z);
        sum[c] = add(sum[c], passes);
        dot[c] = fmadd(passes, sub(value[c], set1(a.centre[channel + c])), dot[c]);
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      const int64_t to = (channel + c) * kBlockImages + at % kBlockImages;
      const Float own = load(a.own + to);
      store(a.sum + to, fmadd(sum[c], own, load(a.sum + to)));
      store(a.dot + to, fmadd(dot[c], own, load(a.dot + to)));
    }
  }
}

template <class Values>
void head_sums(const HeadGradientRow& a) {
  a.is_linear ? head_sums_row<Values, true>(a) : head_sums_row<Values, false>(a);
}

template <class Values, bool kLinear>
void head_gradient_row(const HeadGradientRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t x = 0; x < a.width; ++x) {
    for (int64_t at = 0; at < pitch; at += kWidth) {
      const int64_t channel = at / kBlockImages * kChannels;
      Float value[kChannels];
      Values::read(static_cast<const Entry*>(a.row) + x * pitch + at, value);
      for (int c = 0; c < kChannels; ++c) {
        const int64_t k = channel + c;
        const Float z = fmadd(value[c], set1(a.scale[k]), set1(a.shift[k]));
        const Float own = load(a.own + k * kBlockImages + at % kBlockImages);
        const Float of_g = mul(own, set1(a.of_g[k]));
        const Float rest = fmadd(value[c], set1(a.of_value[k]), set1(a.constant[k]));
        value[c] = kLinear ? add(of_g, rest) : fmadd(is_positive(z), of_g, rest);
      }
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, value);
    }
  }
}

template <class Values>
void head_gradient(const HeadGradientRow& a) {
  a.is_linear ? head_gradient_row<Values, true>(a) : head_gradient_row<Values, false>(a);
}

void flush_sums(float* from, double* to, int32_t channels) {
  const int64_t count = int64_t{padded_channels(channels)} * kBlockImages;
  for (int64_t at = 0; at < count; at += kWidth) {
    add_to(to + at, load(from + at));
    store(from + at, zero());
  }
}
