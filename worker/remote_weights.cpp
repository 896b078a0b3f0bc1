#include "worker/remote_weights.h"

#include <mutex>
#include <optional>

#include "common/base/error.h"
#include "common/protocol/blocking_connection.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh {
namespace {

constexpr auto kTimeout = std::chrono::seconds(60);  // of any one message
constexpr std::uint64_t kMaxTensorBytes = std::uint64_t{1} << 36;

class RemoteWeights final : public WeightSource {
 public:
  RemoteWeights(std::string const& address, std::string const& secret, control::Hello hello) : connection_(address) {
    connection_.set_timeout(kTimeout);
    auto const challenge = expect<control::Challenge>();
    hello.nonce = random_nonce();
    hello.proof = control::hello_proof(secret, challenge.nonce, hello);
    connection_.send(hello);
    auto const welcome = expect<control::Welcome>();
    if (!same_proof(welcome.proof,
                    control::welcome_proof(secret, challenge.nonce, hello, welcome.worker, welcome.incarnation)))
      throw NetworkError("fetch weights", 0, "the coordinator does not know the secret", address);
  }

  // The coordinator has done so.
  void verify(ExpectedTensors const&) const override {}

 private:
  [[nodiscard]] StoredTensor read(TensorInfo const& wanted, std::optional<std::size_t> index) const override {
    std::lock_guard lock(mutex_);
    connection_.send(control::Fetch{.tensor = wanted, .index = index});
    auto const header = expect<control::Tensor>();
    StoredTensor tensor{.name = wanted.name, .dtype = {}, .shape = wanted.shape, .bytes = {}, .owned = {}};
    if (index) tensor.shape.erase(tensor.shape.begin());
    std::size_t elements = 1;
    for (std::size_t const size : tensor.shape) elements *= size;
    auto const dtype = dtype_from_safetensors(header.dtype);
    if (!dtype || !is_of(*dtype, wanted.kind) || header.num_bytes > kMaxTensorBytes ||
        header.num_bytes != elements * size_of(*dtype))
      throw NetworkError("fetch weights", 0,
                         wanted.name + ": " + std::to_string(header.num_bytes) + " bytes of " + header.dtype,
                         connection_.peer());
    tensor.dtype = *dtype;
    tensor.owned = AlignedBuffer<std::byte>(header.num_bytes);
    connection_.receive_bytes(tensor.owned.span());
    tensor.bytes = tensor.owned.span();
    return tensor;
  }

  template <class Expected>
  Expected expect() const {
    auto const message = connection_.receive(kMaxHelloBytes);
    if (auto const* failed = std::get_if<control::Failed>(&message)) throw ModelError(failed->reason);
    auto const* expected = std::get_if<Expected>(&message);
    if (expected == nullptr) throw NetworkError("fetch weights", 0, "an answer to something else", connection_.peer());
    return *expected;
  }

  mutable std::mutex mutex_;
  mutable BlockingConnection connection_;  // guarded by mutex_: one tensor at a time
};

}  // namespace

std::unique_ptr<WeightSource> fetch_weights(std::string const& address, std::string const& secret,
                                            control::Hello const& hello) {
  return std::make_unique<RemoteWeights>(address, secret, hello);
}

}  // namespace expertmesh
