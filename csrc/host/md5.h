// SPDX-License-Identifier: MIT
// MD5 (RFC 1321), because published graph hashes are made of it. Not for anything secret.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nasfast {

using Digest = std::array<uint8_t, 16>;

Digest md5(std::string_view message);

// Writes the 32 lower-case hexadecimal digits of a digest and returns the place after them. They
// sort as the digest's bytes do.
char* write_hex(const Digest& digest, char* out);

}  // namespace nasfast
