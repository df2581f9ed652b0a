// SPDX-License-Identifier: MIT
// Maximum of 2x2 pixels and its gradient. Included inside the anonymous namespace of one
// translation unit, behind gradients.inl.

// kPixelsThere < 0: as many as said.
template <class Values, int kPixelsThere>
inline void max_of(const typename Values::Entry* const (&pixels)[4], int count, int64_t pitch,
                   typename Values::Entry* out) {
  constexpr int kChannels = Values::kChannels;
  const int num_pixels = kPixelsThere < 0 ? count : kPixelsThere;
  for (int64_t at = 0; at < pitch; at += kWidth) {
    Float most[kChannels];
    Values::read(pixels[0] + at, most);
    for (int k = 1; k < num_pixels; ++k) {
      Float value[kChannels];
      Values::read(pixels[k] + at, value);
      for (int c = 0; c < kChannels; ++c) most[c] = max_nan(most[c], value[c]);
    }
    Values::write(out + at, most);
  }
}

template <class Values>
void max_halve(const MaxHalveRow& a) {
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t x = 0; x < a.out_width; ++x) {
    const Entry* pixels[4];
    int count = 0;
    for (const void* row : a.rows) {
      for (int64_t source = 2 * x - a.pad; source < 2 * x - a.pad + 2; ++source) {
        if (row == nullptr || source < 0 || source >= a.in_width) continue;
        pixels[count++] = static_cast<const Entry*>(row) + source * pitch;
      }
    }
    Entry* out = static_cast<Entry*>(a.out) + x * pitch;
    if (count == 4) {
      max_of<Values, 4>(pixels, count, pitch, out);
    } else {
      max_of<Values, -1>(pixels, count, pitch, out);
    }
  }
}

// A pixel takes over from what comes before it where it is above it or NaN, and what comes behind
// it takes over from it likewise. It gets the gradient if it does and nothing else does.
template <class Values>
void max_halve_gradient(const MaxHalveGradientRow& a) {
  constexpr int kChannels = Values::kChannels;
  using Entry = typename Values::Entry;
  const int64_t pitch = int64_t{lines(Values::kStorage, a.channels)} * kBlockImages;
  for (int64_t x = 0; x < a.width; ++x) {
    const int64_t window = (x + a.pad) / 2, first = 2 * window - a.pad;
    const Entry* others[3];
    int num_before = 0, num_others = 0;
    for (int dy = 0; dy < 2; ++dy) {
      for (int64_t source = first; source < first + 2; ++source) {
        if (dy == a.own && source == x) num_before = num_others;
        if (dy == a.own && source == x) continue;
        if (a.values[dy] == nullptr || source < 0 || source >= a.width) continue;
        others[num_others++] = static_cast<const Entry*>(a.values[dy]) + source * pitch;
      }
    }
    const auto* middle = static_cast<const Entry*>(a.values[a.own]) + x * pitch;
    const auto* gradient = static_cast<const Entry*>(a.row) + window * pitch;
    for (int64_t at = 0; at < pitch; at += kWidth) {
      Float own[kChannels], value[kChannels], other[kChannels];
      Values::read(middle + at, own);
      Values::read(gradient + at, value);
      for (int k = 0; k < num_others; ++k) {
        Values::read(others[k] + at, other);
        for (int c = 0; c < kChannels; ++c) {
          value[c] =
              k < num_before
                  ? where_above(own[c], other[c], value[c], where_nan(own[c], value[c], zero()))
                  : where_above(other[c], own[c], zero(), where_nan(other[c], zero(), value[c]));
        }
      }
      Values::write(static_cast<Entry*>(a.out) + x * pitch + at, value);
    }
  }
}
