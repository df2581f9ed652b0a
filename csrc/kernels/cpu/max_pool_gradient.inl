// SPDX-License-Identifier: MIT
// Gradients of maxima of stride 1. Included inside the anonymous namespace of one translation unit,
// before gradients.inl.

// Columns x - 1, x, x + 1 of a row that a window slides over.
template <int kChannels>
struct Columns {
  Float before[kChannels], here[kChannels], next[kChannels];
};

// Kernel 3. Of a window the row that wins is found from the maxima of its rows, and only then the
// column within: a comparison a row and a column instead of one a pixel.
template <class Values>
void max_pool_gradient3(const PoolGradientRow& a) {
  constexpr int kChannels = Values::kChannels, kRows = 5, kOwn = 2;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t at = 0; at < pitch; at += kWidth) {
    Columns<kChannels> values[kRows] = {};
    // By centre of the window: the own row's maximum, and the gradient if that is the window's.
    Columns<kChannels> maximum{}, share{};
    Float second[kChannels] = {}, last[kChannels] = {};  // of the own row: columns x - 2, x - 1
    const auto read = [&](int row, int64_t x, Float(&to)[kChannels]) {
      Values::read(static_cast<const Entry*>(a.values[row]) + x * pitch + at, to);
    };
    for (int row = 0; row < kRows; ++row) {
      if (a.values[row] != nullptr) read(row, 0, values[row].next);
    }
    for (int64_t centre = 0; centre <= a.width; ++centre) {
      // Everything moves on by a column.
      for (int c = 0; c < kChannels; ++c) {
        second[c] = last[c], last[c] = values[kOwn].before[c];
        maximum.before[c] = maximum.here[c], maximum.here[c] = maximum.next[c];
        share.before[c] = share.here[c], share.here[c] = share.next[c];
      }
      Float of_row[kRows][kChannels] = {};
      for (int row = 0; row < kRows; ++row) {
        if (a.values[row] == nullptr) continue;
        Columns<kChannels>& v = values[row];
        for (int c = 0; c < kChannels; ++c) v.before[c] = v.here[c], v.here[c] = v.next[c];
        if (centre + 1 < a.width) read(row, centre + 1, v.next);
        for (int c = 0; c < kChannels; ++c) {
          of_row[row][c] = v.here[c];
          if (centre > 0) of_row[row][c] = max_nan(of_row[row][c], v.before[c]);
          if (centre + 1 < a.width) of_row[row][c] = max_nan(of_row[row][c], v.next[c]);
        }
      }
      for (int c = 0; c < kChannels; ++c) maximum.next[c] = of_row[kOwn][c], share.next[c] = zero();
      for (int dy = 0; dy < 3 && centre < a.width; ++dy) {  // window around row y - 1 + dy
        if (a.rows[dy] == nullptr) continue;
        Float gradient[kChannels];
        Values::read(static_cast<const Entry*>(a.rows[dy]) + centre * pitch + at, gradient);
        for (int row = dy; row < dy + 3; ++row) {
          if (row == kOwn || a.values[row] == nullptr) continue;
          for (int c = 0; c < kChannels; ++c) {
            const Float own = of_row[kOwn][c], other = of_row[row][c];
            gradient[c] = row < kOwn ? where_above(own, other, gradient[c], zero())
                                     : where_above(other, own, zero(), gradient[c]);
          }
        }
        for (int c = 0; c < kChannels; ++c) share.next[c] = add(share.next[c], gradient[c]);
      }
      if (centre == 0) continue;
      // Of the windows around x - 1, x and x + 1, those in which column x is the first maximum.
      const int64_t x = centre - 1;
      Float sum[kChannels];
      for (int c = 0; c < kChannels; ++c) {
        const Float before = last[c], own = values[kOwn].before[c];
        sum[c] = zero();
        if (x > 0) {
          Float of_left = where_above(maximum.before[c], own, zero(), share.before[c]);
          of_left = where_above(maximum.before[c], before, of_left, zero());
          if (x > 1) of_left = where_above(maximum.before[c], second[c], of_left, zero());
          sum[c] = of_left;
        }
        Float of_middle = where_above(maximum.here[c], own, zero(), share.here[c]);
        if (x > 0) of_middle = where_above(maximum.here[c], before, of_middle, zero());
        sum[c] = add(sum[c], of_middle);
        if (centre < a.width) {
          sum[c] = add(sum[c], where_above(maximum.next[c], own, zero(), share.next[c]));
        }
      }
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, sum);
    }
  }
}

// A window's gradient goes to its first maximum in the order of rows: to this pixel where it is
// above what comes before it, and what comes after is not above it.
template <class Values>
void max_pool_gradient(const PoolGradientRow& a) {
  if (a.kernel == 3) return max_pool_gradient3<Values>(a);
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  const int64_t pad = a.kernel / 2;
  const auto* middle = static_cast<const Entry*>(a.values[a.kernel - 1]);
  for (int64_t x = 0; x < a.width; ++x) {
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float own[kChannels], sum[kChannels];
      Values::read(middle + x * pitch + at, own);
      for (int c = 0; c < kChannels; ++c) sum[c] = zero();
      for (int64_t dy = 0; dy < a.kernel; ++dy) {  // window around row y - pad + dy
        if (a.rows[dy] == nullptr) continue;
        for (int64_t centre = x - pad; centre <= x + pad; ++centre) {
          if (centre < 0 || centre >= a.width) continue;
          Float value[kChannels];
          Values::read(static_cast<const Entry*>(a.rows[dy]) + centre * pitch + at, value);
          for (int64_t k = dy; k < dy + a.kernel; ++k) {  // rows of values in that window
            if (a.values[k] == nullptr) continue;
            for (int64_t source = centre - pad; source <= centre + pad; ++source) {
              if (source < 0 || source >= a.width) continue;
              if (k == a.kernel - 1 && source == x) continue;
              const bool is_before = k < a.kernel - 1 || (k == a.kernel - 1 && source < x);
              Float other[kChannels];
              Values::read(static_cast<const Entry*>(a.values[k]) + source * pitch + at, other);
              for (int c = 0; c < kChannels; ++c) {
                value[c] = is_before ? where_above(own[c], other[c], value[c], zero())
                                     : where_above(other[c], own[c], zero(), value[c]);
              }
            }
          }
          for (int c = 0; c < kChannels; ++c) sum[c] = add(sum[c], value[c]);
        }
      }
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, sum);
    }
  }
}
