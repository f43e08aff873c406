// SPDX-License-Identifier: Apache-2.0
#include "runner/protocol.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "cases/error.h"

namespace attest::protocol {
namespace {

// In the order of attest_status.
constexpr std::array<std::string_view, 5> kStatusNames{"ok", "unsupported", "invalid", "overflow", "error"};

DType dtype_named(std::string_view name, const std::string& place) {
  for (int d = 0; d < kDTypeCount; ++d) {
    if (info(static_cast<DType>(d)).name == name) return static_cast<DType>(d);
  }
  throw Error::at(place, "got \"{}\", wanted a dtype", name);
}

Tensor tensor_from_json(const Json& json, const std::string& place, int64_t bytes) {
  Fields fields(json, place);
  Tensor tensor;
  tensor.dtype = dtype_named(fields.required<std::string>(field::dtype), fields.place(field::dtype));
  tensor.shape = fields.required<std::vector<int64_t>>(field::shape);
  tensor.strides = fields.required<std::vector<int64_t>>(field::strides);
  tensor.offset = fields.required<int64_t>(field::offset);
  tensor.byte_offset = fields.optional<int64_t>(field::byte_offset, 0);
  tensor.begin = fields.required<int64_t>(field::begin);
  tensor.size = fields.required<int64_t>(field::size);
  fields.finish();
  if (tensor.shape.size() != tensor.strides.size() || tensor.shape.size() > kMaxRank) {
    throw Error::at(place, "got {} extents and {} strides, wanted as many, at most {}", tensor.shape.size(),
                    tensor.strides.size(), kMaxRank);
  }
  // Each comparison keeps to numbers that are already known to be in range, so that nothing overflows.
  const bool block =
      tensor.begin >= 0 && tensor.size > 0 && tensor.begin <= bytes && tensor.size <= bytes - tensor.begin;
  if (!block) throw Error::at(place, "block [{}, +{}) lies outside of {} bytes", tensor.begin, tensor.size, bytes);
  const bool inside = tensor.offset >= tensor.begin && tensor.offset < tensor.begin + tensor.size &&
                      tensor.byte_offset >= 0 && tensor.byte_offset <= tensor.offset - tensor.begin;
  if (!inside) throw Error::at(place, "offset {} (- {}) lies outside of its block", tensor.offset, tensor.byte_offset);
  return tensor;
}

tl::unexpected<Failure> failed(Failure::Kind kind, std::string text) {
  return tl::unexpected(Failure{kind, std::move(text)});
}

tl::unexpected<Failure> failed_call(const char* call) {
  const int error = errno;
  const bool gone = error == EPIPE || error == ECONNRESET || error == ENOTCONN;
  return failed(Failure::Kind::closed, gone ? "the other side is gone" : fmt::format("{}: {}", call, strerror(error)));
}

// sendmsg of what is left, with the descriptor when it is still to be passed.
ssize_t send_some(int socket, std::string_view bytes, int fd) {
  iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* message = CMSG_FIRSTHDR(&header);
    message->cmsg_level = SOL_SOCKET;
    message->cmsg_type = SCM_RIGHTS;
    message->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(message), &fd, sizeof(int));
  }
  return ::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// recvmsg; keeps the first descriptor that comes and closes all others.
ssize_t receive_some(int socket, char* to, size_t bytes, UniqueFd* passed) {
  if (passed == nullptr) return ::recv(socket, to, bytes, MSG_DONTWAIT);
  iovec vector{to, bytes};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  for (cmsghdr* message = CMSG_FIRSTHDR(&header); message != nullptr; message = CMSG_NXTHDR(&header, message)) {
    if (message->cmsg_level != SOL_SOCKET || message->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (message->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(message) + i * sizeof(int), sizeof(int));
      UniqueFd owned(fd);
      if (!*passed) *passed = std::move(owned);
    }
  }
  return got;
}

tl::expected<void, Failure> send_all(int socket, std::string_view bytes, int fd, const Wait& wait) {
  while (!bytes.empty()) {
    const ssize_t sent = send_some(socket, bytes, fd);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
      fd = -1;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (auto ready = wait(POLLOUT); !ready) return ready;
    } else if (errno != EINTR) {
      return failed_call("sendmsg");
    }
  }
  return {};
}

tl::expected<void, Failure> receive_all(int socket, char* to, size_t bytes, const Wait& wait, UniqueFd* passed) {
  while (bytes > 0) {
    const ssize_t got = receive_some(socket, to, bytes, passed);
    if (got > 0) {
      to += got;
      bytes -= static_cast<size_t>(got);
    } else if (got == 0) {
      return failed(Failure::Kind::closed, "the other side is gone");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (auto ready = wait(POLLIN); !ready) return ready;
    } else if (errno != EINTR) {
      return failed_call("recvmsg");
    }
  }
  return {};
}

}  // namespace

std::optional<std::string_view> name_of(int status) {
  // An int, because a foreign library may return a number that the enumeration cannot even hold.
  if (status < 0 || status >= static_cast<int>(kStatusNames.size())) return std::nullopt;
  return kStatusNames[static_cast<size_t>(status)];
}

std::optional<attest_status> status_named(std::string_view name) {
  const auto* const found = std::find(kStatusNames.begin(), kStatusNames.end(), name);
  if (found == kStatusNames.end()) return std::nullopt;
  return static_cast<attest_status>(found - kStatusNames.begin());
}

Tensor tensor_of(const Block& block) {
  return {block.dtype, block.shape, block.strides, block.offset, 0, block.begin, block.size};
}

Json to_json(const Tensor& tensor) {
  Json json{{field::dtype, info(tensor.dtype).name}, {field::shape, tensor.shape}, {field::strides, tensor.strides},
            {field::offset, tensor.offset},          {field::begin, tensor.begin}, {field::size, tensor.size}};
  if (tensor.byte_offset != 0) json[field::byte_offset] = tensor.byte_offset;
  return json;
}

Json to_json(const Tensors& tensors) {
  Json json = Json::object();
  for (const auto& [name, tensor] : tensors) json[name] = to_json(tensor);
  return json;
}

Tensors tensors_from_json(const Json& json, const std::string& place, int64_t bytes) {
  if (!json.is_object()) throw Error::at(place, "wanted an object of tensors");
  Tensors tensors;
  for (const auto& [name, tensor] : json.items()) {
    tensors.emplace(name, tensor_from_json(tensor, fmt::format("{}.{}", place, name), bytes));
  }
  return tensors;
}

Wait wait_until(int socket, Clock::time_point deadline) {
  return [socket, deadline](short events) -> tl::expected<void, Failure> {
    while (true) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
      pollfd ready{socket, events, 0};
      const int count = ::poll(&ready, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000)));
      if (count > 0) return {};
      if (count < 0 && errno != EINTR) return failed_call("poll");
      if (count == 0 && left <= 0) return failed(Failure::Kind::timed_out, "");
    }
  };
}

Wait wait_forever(int socket) {
  return [socket](short events) -> tl::expected<void, Failure> {
    pollfd ready{socket, events, 0};
    while (::poll(&ready, 1, -1) < 0) {
      if (errno != EINTR) return failed_call("poll");
    }
    return {};
  };
}

tl::expected<void, Failure> send_frame(int socket, std::string_view payload, int fd, const Wait& wait) {
  if (payload.size() > kMaxPayload) throw std::logic_error("a frame beyond the protocol's limit");
  const auto size = static_cast<uint32_t>(payload.size());
  std::string frame;
  frame.reserve(4 + payload.size());
  for (int shift = 0; shift < 32; shift += 8) frame.push_back(static_cast<char>((size >> shift) & 0xffU));
  frame.append(payload);
  return send_all(socket, frame, fd, wait);
}

tl::expected<std::string, Failure> receive_frame(int socket, const Wait& wait, UniqueFd* passed) {
  std::array<char, 4> header{};
  if (auto got = receive_all(socket, header.data(), header.size(), wait, passed); !got) {
    return tl::unexpected(got.error());
  }
  uint32_t size = 0;
  for (size_t i = 0; i < 4; ++i) size |= static_cast<uint32_t>(static_cast<unsigned char>(header[i])) << (8 * i);
  if (size > kMaxPayload) {
    return failed(Failure::Kind::garbage, fmt::format("a frame of {} bytes, the limit is {}", size, kMaxPayload));
  }
  std::string payload(size, '\0');
  if (auto got = receive_all(socket, payload.data(), payload.size(), wait, passed); !got) {
    return tl::unexpected(got.error());
  }
  return payload;
}

tl::expected<Json, Failure> parse_payload(std::string_view payload) {
  try {
    // Depth is limited while parsing: later code may walk a value by recursion.
    Json json = Json::parse(payload, [](int depth, Json::parse_event_t event, Json&) {
      const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
      if (opens && depth >= kMaxDepth) throw Error(fmt::format("nested deeper than {}", kMaxDepth));
      return true;
    });
    if (json.is_object()) return json;
  } catch (const Error& error) {
    return failed(Failure::Kind::garbage, error.what());
  } catch (const Json::exception&) {
    // The library's own words repeat the input; what follows does it too, in a printable way.
  }
  return failed(Failure::Kind::garbage, fmt::format("not a JSON object: {}", printable(payload, 60)));
}

std::string make_nonce() {
  uint64_t random = 0;
  // Up to 256 bytes never come in part; only a signal in a starting system's first seconds can interrupt.
  while (::getrandom(&random, sizeof random, 0) != static_cast<ssize_t>(sizeof random)) {
  }
  return fmt::format("{:016x}", random);
}

std::string printable(std::string_view text, size_t limit, bool lines) {
  std::string out;
  size_t i = 0;
  while (i < text.size() && out.size() < limit) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      const bool control = lead < 0x20 || lead == 0x7f;
      const bool kept = lines && (lead == '\n' || lead == '\t');
      out.push_back(control && !kept ? ' ' : text[i]);
      ++i;
      continue;
    }
    // JSON writers refuse invalid UTF-8, so what is no code point is replaced byte by byte.
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    const std::string_view code_point = text.substr(i, length);
    bool valid = lead >= 0xc2 && lead <= 0xf4 && code_point.size() == length;
    for (size_t k = 1; valid && k < length; ++k) valid = (static_cast<unsigned char>(code_point[k]) & 0xc0U) == 0x80;
    if (valid && length >= 3) {
      const auto second = static_cast<unsigned char>(code_point[1]);
      // Overlong forms, surrogates, and beyond U+10FFFF.
      if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) ||
          (lead == 0xf4 && second > 0x8f)) {
        valid = false;
      }
      // U+2028 and U+2029 separate lines in some viewers.
      if (valid && lead == 0xe2 && second == 0x80 && (code_point[2] == '\xa8' || code_point[2] == '\xa9')) {
        out.push_back(' ');
        i += length;
        continue;
      }
    }
    if (!valid) {
      out.push_back('?');
      ++i;
    } else {
      if (out.size() + length > limit) break;
      out.append(code_point);
      i += length;
    }
  }
  return out;
}

}  // namespace attest::protocol
