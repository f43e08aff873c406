// SPDX-License-Identifier: Apache-2.0
// The protocol between attest and a worker process, as spec/protocol.md has it: frames of JSON on a stream socket, a
// memfd passed along, and the names of everything. Both sides use this file; neither trusts the other's bytes.
//
//   const Wait wait = wait_until(socket, Clock::now() + 10s);
//   if (auto sent = send_frame(socket, json.dump(), memfd, wait); !sent) return sent.error().text;
//   auto received = receive_frame(socket, wait);        // the payload, or why there is none
//   auto reply = received.and_then(parse_payload);      // an object
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "attest/backend.h"
#include "cases/dtype.h"
#include "cases/json.h"
#include "runner/arena.h"
#include "runner/unique_fd.h"

namespace attest::protocol {

using Clock = std::chrono::steady_clock;

/// Version of the protocol; `open` carries it, and a worker of another one refuses.
inline constexpr int kVersion = 1;
/// The worker's end of the control socket.
inline constexpr int kControlFd = 3;
/// Largest payload of a frame in bytes.
inline constexpr uint32_t kMaxPayload = 1U << 20;
/// Deepest nesting of a payload's arrays and objects.
inline constexpr int kMaxDepth = 32;
/// Most axes of a tensor.
inline constexpr size_t kMaxRank = 16;
/// Longest message of a reply in bytes; the rest is cut off.
inline constexpr size_t kMaxMessage = 2000;

namespace op {
inline constexpr std::string_view open = "open", prepare = "prepare", run = "run", run_together = "run_together",
                                  release = "release", close = "close", probe = "probe";
}  // namespace op

namespace field {
inline constexpr const char* op = "op";
inline constexpr const char* nonce = "nonce";
inline constexpr const char* protocol = "protocol";
inline constexpr const char* library = "library";
inline constexpr const char* options = "options";
inline constexpr const char* plan = "plan";
inline constexpr const char* bytes = "bytes";
inline constexpr const char* problem = "problem";
inline constexpr const char* tensors = "tensors";
inline constexpr const char* upload = "upload";
inline constexpr const char* download = "download";
inline constexpr const char* max_query_length = "max_query_length";
inline constexpr const char* max_total_length = "max_total_length";
inline constexpr const char* runs = "runs";
inline constexpr const char* replies = "replies";
inline constexpr const char* what = "what";
inline constexpr const char* arguments = "arguments";
inline constexpr const char* status = "status";
inline constexpr const char* message = "message";
inline constexpr const char* seconds = "seconds";
inline constexpr const char* details = "details";
inline constexpr const char* name = "name";
inline constexpr const char* version = "version";
inline constexpr const char* description = "description";
inline constexpr const char* device = "device";
inline constexpr const char* own_memory = "own_memory";
inline constexpr const char* abi_version = "abi_version";
inline constexpr const char* declarations = "declarations";
inline constexpr const char* dtype = "dtype";
inline constexpr const char* shape = "shape";
inline constexpr const char* strides = "strides";
inline constexpr const char* offset = "offset";
inline constexpr const char* byte_offset = "byte_offset";
inline constexpr const char* begin = "begin";
inline constexpr const char* size = "size";
}  // namespace field

/// "ok", "unsupported", "invalid", "overflow", "error"; nothing for a value that is no status.
std::optional<std::string_view> name_of(int status);
/// The inverse.
std::optional<attest_status> status_named(std::string_view name);

/// A tensor as the backend shall see it, and the block of the memfd that it lies in. Made from a block, then bent where
/// a step must be refused: a worker passes on dtype, shape and strides as they are.
struct Tensor {
  DType dtype = DType::f32;
  std::vector<int64_t> shape, strides;  ///< Strides in elements.
  int64_t offset = 0;                   ///< Of element 0 in the memfd, bytes.
  int64_t byte_offset = 0;              ///< DLTensor::byte_offset: `data` points this many bytes before element 0.
  int64_t begin = 0, size = 0;          ///< The block: the unit of upload and download, bytes.
};
using Tensors = std::map<std::string, Tensor, std::less<>>;

Tensor tensor_of(const Block& block);
Json to_json(const Tensor& tensor);
Json to_json(const Tensors& tensors);
/// Throws Error on a missing or unknown field, a wrong type, and a block outside of [0, bytes).
Tensors tensors_from_json(const Json& json, const std::string& place, int64_t bytes);

/// Why a frame could not be sent or received.
struct Failure {
  enum class Kind : int {
    closed,     ///< The other side is gone.
    timed_out,  ///< The wait gave up.
    garbage,    ///< Bytes that are no frame, or no JSON object.
  };
  Kind kind;
  std::string text;  ///< One line; empty for `timed_out`.
};

/// Blocks until the socket is ready for POLLIN or POLLOUT. Whoever waits can watch other things meanwhile.
using Wait = std::function<tl::expected<void, Failure>(short events)>;
/// Waits for one socket only.
Wait wait_until(int socket, Clock::time_point deadline);
/// Waits forever.
Wait wait_forever(int socket);

/// Sends one frame, and `fd` with it unless it is negative. Never raises SIGPIPE. Throws std::logic_error on a payload
/// beyond kMaxPayload.
tl::expected<void, Failure> send_frame(int socket, std::string_view payload, int fd, const Wait& wait);
/// Receives one frame. A descriptor that came with it goes to `passed`; without `passed` it is dropped by the kernel.
tl::expected<std::string, Failure> receive_frame(int socket, const Wait& wait, UniqueFd* passed = nullptr);
/// Parses a payload into an object: UTF-8, at most kMaxDepth deep.
tl::expected<Json, Failure> parse_payload(std::string_view payload);

/// 16 random hex digits.
std::string make_nonce();

/// Text of foreign origin made fit for a report: one line (unless `lines`), valid UTF-8, no control characters, at most
/// `limit` bytes.
std::string printable(std::string_view text, size_t limit, bool lines = false);

}  // namespace attest::protocol
