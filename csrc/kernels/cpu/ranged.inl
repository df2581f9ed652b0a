// SPDX-License-Identifier: MIT
// Combination of terms that cover ranges of channels. Included inside the anonymous namespace of
// one translation unit, behind gradients.inl.
//
// The lines of a result are cut into spans, in each of which the same terms cover every channel and
// take whole lines from their rows; within a span a term is a pointer. What remains are lines of
// two channels that differ in their terms or take them from two lines: those go channel by channel.

constexpr int kMostTerms = 16;  // of a span

// A span's terms, those that are masked first, and their rows from the span's first line on.
template <class Values>
struct Span {
  int64_t first_line, num_lines;
  int num_terms, num_masked;
  bool is_rectified;  // every term, and each has a shift
  const typename Values::Entry* row[kMostTerms];
  int64_t pitch[kMostTerms];  // entries of a pixel
  int64_t ahead[kMostTerms];  // about kAhead, whole pixels
  const float* scale[kMostTerms];
  const float* shift[kMostTerms];
  bool rectified[kMostTerms];
};

// The line behind those that have the same terms as `line`. `splits` tells whether a term covers
// them other than by whole lines.
template <class Values>
inline int64_t span_end(const CombineRangedRow& a, int64_t line, bool& splits) {
  constexpr int64_t kChannels = Values::kChannels;
  const int64_t first = line * kChannels;
  int64_t end = a.channels / kChannels;
  splits = line == end;  // the last of an odd number of channels
  if (splits) return line + 1;
  for (int t = 0; t < a.num_terms; ++t) {
    const RangedTerm& term = a.terms[t];
    const int64_t begin = term.to, behind = begin + term.count;
    int64_t same = end;
    if (begin >= behind || behind <= first) continue;
    if (begin >= first + kChannels) {
      same = begin / kChannels;
    } else if (begin <= first && behind >= first + kChannels) {
      splits = splits || (term.from - term.to) % kChannels != 0;
      same = behind / kChannels;
    } else {
      splits = true;
      same = line + 1;
    }
    end = same < end ? same : end;
  }
  return end;
}

// Collects the terms of lines that span_end does not call split; false if they are too many.
template <class Values>
inline bool collect(const CombineRangedRow& a, int64_t line, int64_t end, Span<Values>& span) {
  constexpr int64_t kChannels = Values::kChannels;
  const int64_t first = line * kChannels;
  span.first_line = line, span.num_lines = end - line;
  span.num_terms = span.num_masked = 0;
  span.is_rectified = true;
  for (int t = 0; t < a.num_terms; ++t) {
    const RangedTerm& term = a.terms[t];
    if (first < term.to || first >= int64_t{term.to} + term.count) continue;
    if (span.num_terms == kMostTerms) return false;
    const int k = span.num_terms++;
    const int64_t channel = first - term.to + term.from;
    const int64_t pitch = int64_t{lines(Values::kStorage, term.channels)} * kBlockImages;
    span.row[k] =
        static_cast<const typename Values::Entry*>(term.row) + channel / kChannels * kBlockImages;
    span.pitch[k] = pitch;
    span.ahead[k] = (pitch < kAhead ? kAhead / pitch : 1) * pitch;
    span.scale[k] = term.scale + channel;
    span.shift[k] = term.shift == nullptr ? nullptr : term.shift + channel;
    span.rectified[k] = term.rectified;
    span.num_masked += t < a.num_masked;
    span.is_rectified = span.is_rectified && term.rectified && term.shift != nullptr;
  }
  return true;
}

// sum + value * scale + shift, or sum + max(value * scale + shift, 0).
inline Float add_scaled(Float sum, Float value, const float* scale, const float* shift,
                        bool rectified, int64_t channel) {
  const Float factor = set1(scale[channel]);
  if (rectified) {
    const Float offset = shift == nullptr ? zero() : set1(shift[channel]);
    return add(sum, relu(fmadd(value, factor, offset)));
  }
  return fmadd(value, factor, shift == nullptr ? sum : add(sum, set1(shift[channel])));
}

// kMasked, kTerms < 0: as many as the span says; kTerms are those that are not masked.
template <class Values, class Operands, bool kRaw, bool kOperand, int kMasked, int kTerms,
          bool kRectified>
void combine_span(const CombineRangedRow& a, const Span<Values>& of) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const Span<Values> span = of;  // a copy that no store can change
  const int num_masked = kMasked < 0 ? span.num_masked : kMasked;
  const int num_terms = kTerms < 0 ? span.num_terms - num_masked : kTerms;
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t operand_lines = lines(Operands::kStorage, a.channels);
  const bool is_linear = a.is_linear;
  const auto* mask = static_cast<const Entry*>(a.mask.row);
  const Entry* row[kMostTerms];
  for (int64_t x = 0; x < a.width; ++x) {
    for (int t = 0; t < num_masked + num_terms; ++t) row[t] = span.row[t] + x * span.pitch[t];
    for (int64_t line = 0; line < span.num_lines; ++line) {
      const int64_t own_line = span.first_line + line, channel = own_line * kChannels;
      for (int64_t slice = 0; slice < kBlockImages; slice += kWidth) {
        const int64_t from = line * kBlockImages + slice;  // in a term's row
        const int64_t at = (x * num_lines + own_line) * kBlockImages + slice;
        Float sum[kChannels], value[kChannels];
        for (int c = 0; c < kChannels; ++c) sum[c] = zero();
        if constexpr (kMasked != 0) {
#pragma GCC unroll 2
          for (int t = 0; t < num_masked; ++t) {
            __builtin_prefetch(row[t] + from + span.ahead[t]);
            Values::read(row[t] + from, value);
            for (int c = 0; c < kChannels; ++c) {
              sum[c] = add_scaled(sum[c], value[c], span.scale[t], span.shift[t], false,
                                  line * kChannels + c);
            }
          }
          Values::read(mask + at, value);
          for (int c = 0; c < kChannels; ++c) {
            const Float offset = a.mask.shift == nullptr ? zero() : set1(a.mask.shift[channel + c]);
            const Float z = fmadd(value[c], set1(a.mask.scale[channel + c]), offset);
            sum[c] = where_positive(z, sum[c]);
          }
        }
        if (a.shift != nullptr) {
          for (int c = 0; c < kChannels; ++c) sum[c] = add(sum[c], set1(a.shift[channel + c]));
        }
#pragma GCC unroll 6
        for (int k = 0; k < num_terms; ++k) {
          const int t = num_masked + k;
          __builtin_prefetch(row[t] + from + span.ahead[t]);
          Values::read(row[t] + from, value);
          for (int c = 0; c < kChannels; ++c) {
            const int64_t own = line * kChannels + c;
            if constexpr (kRectified) {
              const Float scale = set1(span.scale[t][own]), shift = set1(span.shift[t][own]);
              sum[c] = add(sum[c], relu(fmadd(value[c], scale, shift)));
            } else {
              sum[c] = add_scaled(sum[c], value[c], span.scale[t], span.shift[t], span.rectified[t],
                                  own);
            }
          }
        }
        if constexpr (kRaw) Values::write(static_cast<Entry*>(a.raw) + at, sum);
        if constexpr (kOperand) {
          if (!is_linear) {
            for (int c = 0; c < kChannels; ++c) sum[c] = relu(sum[c]);
          }
          write_operand<Values, Operands>(a.operand, x, own_line, operand_lines, slice, sum);
        }
      }
    }
  }
}

template <class Values, class Operands, bool kRaw, bool kOperand>
void combine_span_into(const CombineRangedRow& a, const Span<Values>& span) {
  const int num_terms = span.num_terms - span.num_masked;
  if (span.num_masked == 1 && num_terms == 1) {
    return combine_span<Values, Operands, kRaw, kOperand, 1, 1, false>(a, span);
  }
  if (span.num_masked == 2 && num_terms == 1) {
    return combine_span<Values, Operands, kRaw, kOperand, 2, 1, false>(a, span);
  }
  if (span.num_masked > 0) {
    return combine_span<Values, Operands, kRaw, kOperand, -1, -1, false>(a, span);
  }
  switch (span.is_rectified ? num_terms : -num_terms) {
    case 1:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 1, true>(a, span);
    case 2:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 2, true>(a, span);
    case 3:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 3, true>(a, span);
    case 4:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 4, true>(a, span);
    case 5:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 5, true>(a, span);
    case 6:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 6, true>(a, span);
    case -1:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 1, false>(a, span);
    case -2:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 2, false>(a, span);
    case -3:
      return combine_span<Values, Operands, kRaw, kOperand, 0, 3, false>(a, span);
    default:
      return combine_span<Values, Operands, kRaw, kOperand, 0, -1, false>(a, span);
  }
}

// One channel of a line that is split, as in combine_span.
template <class Values>
inline Float combine_channel(const CombineRangedRow& a, int64_t x, int64_t channel, int64_t slice) {
  Float sum = zero();
  for (int t = 0; t <= a.num_terms; ++t) {
    if (t == a.num_masked) {
      if (t > 0) {
        const Float value = read_channel<Values>(a.mask.row, x, a.mask.channels, channel, slice);
        const Float offset = a.mask.shift == nullptr ? zero() : set1(a.mask.shift[channel]);
        sum = where_positive(fmadd(value, set1(a.mask.scale[channel]), offset), sum);
      }
      if (a.shift != nullptr) sum = add(sum, set1(a.shift[channel]));
    }
    if (t == a.num_terms) break;
    const RangedTerm& term = a.terms[t];
    if (channel < term.to || channel >= int64_t{term.to} + term.count) continue;
    const int64_t own = channel - term.to + term.from;
    sum = add_scaled(sum, read_channel<Values>(term.row, x, term.channels, own, slice), term.scale,
                     term.shift, term.rectified && t >= a.num_masked, own);
  }
  return sum;
}

template <class Values, class Operands>
void combine_split(const CombineRangedRow& a, int64_t begin, int64_t end) {
  constexpr int kChannels = Values::kChannels;
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  const int64_t operand_lines = lines(Operands::kStorage, a.channels);
  for (int64_t x = 0; x < a.width; ++x) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t slice = 0; slice < kBlockImages; slice += kWidth) {
        Float sum[kChannels];
        for (int c = 0; c < kChannels; ++c) {
          const int64_t channel = line * kChannels + c;
          sum[c] = channel < a.channels ? combine_channel<Values>(a, x, channel, slice) : zero();
        }
        if (a.raw != nullptr) {
          Values::write(static_cast<typename Values::Entry*>(a.raw) +
                            (x * num_lines + line) * kBlockImages + slice,
                        sum);
        }
        if (a.operand == nullptr) continue;
        for (int c = 0; c < kChannels && !a.is_linear; ++c) sum[c] = relu(sum[c]);
        write_operand<Values, Operands>(a.operand, x, line, operand_lines, slice, sum);
      }
    }
  }
}

template <class Values, class Operands>
void combine_ranged(const CombineRangedRow& a) {
  const int64_t num_lines = lines(Values::kStorage, a.channels);
  int64_t end;
  for (int64_t line = 0; line < num_lines; line = end) {
    bool splits;
    Span<Values> span;
    end = span_end<Values>(a, line, splits);
    if (splits || !collect(a, line, end, span)) {
      combine_split<Values, Operands>(a, line, end);
    } else if (a.raw != nullptr && a.operand != nullptr) {
      combine_span_into<Values, Operands, true, true>(a, span);
    } else if (a.raw != nullptr) {
      combine_span_into<Values, Operands, true, false>(a, span);
    } else if (a.operand != nullptr) {
      combine_span_into<Values, Operands, false, true>(a, span);
    }
  }
}
