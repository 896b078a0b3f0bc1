// What coordinator and workers tell each other on the control plane: JSON objects with a "type" field, one per frame.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/strong_id.h"
#include "common/checkpoint/fingerprint.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh::control {

constexpr std::uint32_t kProtocolVersion = 10;
// An idle worker's heartbeats are this much rarer, and awaited for so much longer: silence while nobody waits for rows
// costs nothing, processor time would. (A process that ends is noticed at once all the same.)
constexpr int kIdleHeartbeatFactor = 4;
std::string build_version();  // of the program this is compiled into: both ends must be equal

// coordinator -> worker, first message of a connection; says nothing else to a stranger.
struct Challenge {
  std::string nonce;
};

// worker -> coordinator, the answer to it.
// Among Hello::isas: the kernels of NVIDIA's GPUs.
constexpr std::string_view kCudaKernels = "cuda";
struct Hello {
  std::uint32_t protocol = kProtocolVersion;
  std::string build;
  std::string nonce;
  std::string proof;        // see hello_proof()
  WorkerId worker;          // 0: comes by itself, and is told in the welcome
  Incarnation incarnation;  // likewise
  std::int64_t pid = 0;
  std::string host;
  std::string device;               // "cpu", "cuda:0"
  std::vector<std::string> isas;    // that it can run, the best one last
  std::vector<std::string> dtypes;  // of packed weights it can run, e.g. "float32"
  std::uint64_t memory_bytes = 0;   // of the host
  Fingerprint checkpoint;           // of the one it has; empty: none that it knows of
  std::uint32_t nccl = 0;           // version of the library that its device can use, such as 22809; 0: none
};

// coordinator -> worker: taken in, by one that knows the secret too.
struct Welcome {
  WorkerId worker;
  Incarnation incarnation;
  std::string proof;
};

// coordinator -> worker that came by itself: how to get into its MPI world.
struct Connect {
  std::string port;         // for MPI_Comm_connect
  std::string name_server;  // Open MPI's URI of it
};

// worker -> coordinator, inside MPI_Comm_connect: its MPI daemon has called the coordinator's, which may answer now.
// See common/transport/pmix_connect.h.
struct Called {};

// coordinator -> worker: there is no place for you. The worker ends.
struct Refuse {
  std::string reason;
};

// worker -> coordinator that took it in: what it has to work with. Only then is it assigned anything.
struct Capacity {
  std::string device;                  // "cpu", "cuda:0 NVIDIA H200"
  std::uint32_t threads = 1;           // compute threads
  std::uint64_t bytes_per_second = 0;  // that it reads weights with
  bool measured = true;                // else somebody says so
  std::uint64_t memory_bytes = 0;      // that its experts may take
};

// coordinator -> worker: load these experts.
struct Assign {
  std::string isa;         // of the numerics profile
  std::string model_dir;   // on the coordinator's host
  Fingerprint checkpoint;  // of that; empty for dummy weights
  std::string weights;     // HOST:PORT to get tensors from, if there is no such folder; empty: nowhere
  LoadFormat load_format = LoadFormat::automatic;
  std::uint64_t dummy_seed = 0;
  ExpertModelSpec model;
  std::vector<std::vector<std::uint32_t>> held;  // per layer of `model`: global expert ids, ascending
  PlacementEpoch epoch;
  DispatchLimits limits;           // of one request
  std::uint32_t max_requests = 1;  // of this coordinator at once
  std::uint32_t heartbeat_ms = 25;
  std::string link_id{};  // see make_nccl_id(): rows may come past the messages; empty: they do not
  std::string shm{};      // see ShmArea::offer(): messages may come by this memory; empty: by MPI
};

struct Progress {  // worker -> coordinator while loading, packed bytes
  std::uint64_t loaded_bytes = 0;
  std::uint64_t total_bytes = 0;
};
struct Loaded {  // worker -> coordinator: requests of this placement are served from now on
  PlacementEpoch epoch{};
  std::uint64_t resident_bytes = 0;
  std::vector<std::vector<std::uint32_t>> held{};       // as in Assign
  std::vector<std::vector<std::uint64_t>> checksums{};  // of each, as it was packed
  std::string transport{};                              // of messages: "shm", or "mpi" and why not the other
};

// coordinator -> worker that serves: load these as well, and say so; requests of the placement before are served until
// the first of this one comes.
struct Hold {
  std::vector<std::vector<std::uint32_t>> held;  // as in Assign
  PlacementEpoch epoch;
};
struct Leaving {};       // worker -> coordinator: it was asked to end, and serves until it gets a shutdown
struct Heartbeat {};     // worker -> coordinator
struct Idle {};          // coordinator -> worker: sleep until wake
struct Wake {};          // coordinator -> worker
struct Shutdown {        // coordinator -> worker: leave
  bool for_good = true;  // false: so does the coordinator, and whoever comes in its place may have the worker again
};

enum class FailureKind : std::uint8_t {
  model,  // the model directory is at fault
  other,
};
// worker -> the coordinator's weight port: one tensor, please. The answer is a Tensor and then its bytes, or a Failed.
struct Fetch {
  TensorInfo tensor;
  std::optional<std::uint64_t> index{};  // only this entry of its first dimension
};
struct Tensor {
  std::string dtype;  // as in safetensors: "BF16"
  std::uint64_t num_bytes = 0;
};

struct Failed {  // worker -> coordinator, its last words
  FailureKind kind = FailureKind::other;
  std::string reason;
};

using Message = std::variant<Challenge, Hello, Welcome, Refuse, Assign, Progress, Loaded, Hold, Leaving, Heartbeat,
                             Idle, Wake, Shutdown, Failed, Connect, Called, Fetch, Tensor, Capacity>;

// Names the message and the field and says what is wrong with it.
class MessageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What Hello::proof and Welcome::proof have to be.
std::string hello_proof(std::string_view secret, std::string_view coordinator_nonce, Hello const& hello);
std::string welcome_proof(std::string_view secret, std::string_view coordinator_nonce, Hello const& hello,
                          WorkerId worker, Incarnation incarnation);

std::string encode(Message const& message);
// Throws MessageError: not JSON, an unknown type, a missing, unknown or ill-typed field, a value out of range, or parts
// that contradict each other.
Message decode(std::string_view json);

}  // namespace expertmesh::control
