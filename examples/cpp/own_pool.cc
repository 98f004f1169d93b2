// SPDX-License-Identifier: Apache-2.0
// The caller's own thread pool through Executor, and poll: the first call draws its progress, the
// second is stopped half way.
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#include "attentile/attention.h"

using namespace attentile;

class Pool {
 public:
  explicit Pool(int n) {
    while (n-- > 0) threads_.emplace_back([this](std::stop_token stop) { work(stop); });
  }
  static int submit(void* self, void (*task)(void*), void* argument) {
    auto* pool = static_cast<Pool*>(self);
    std::lock_guard lock(pool->mutex_);
    pool->tasks_.push([=] { task(argument); });
    return pool->wake_.notify_one(), 0;
  }

 private:
  void work(std::stop_token stop) {
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [this] { return !tasks_.empty(); })) {
      const auto task = std::move(tasks_.front());
      tasks_.pop(), lock.unlock(), task(), lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::queue<std::function<void()>> tasks_;
  std::vector<std::jthread> threads_;  // last: stops and joins before the rest goes
};

int main() {
  std::vector<float> q(4096 * 8 * 64, 0.25f), out(q.size());
  const auto view = [](auto& x) { return contiguous_view(x.data(), {}, {1, 4096, 8, 64}); };
  const AttentionInputs inputs = {.q = view(q), .k = view(q), .v = view(q)};
  Pool pool(3);
  const Executor executor = {.context = &pool, .num_threads = 4, .submit = Pool::submit};
  ExecutionContext context = {.executor = &executor};
  context.poll = [](void* limit, double fraction) {
    std::fprintf(stderr, "\r%3.0f %%", 100 * fraction);
    return fraction > *static_cast<double*>(limit) ? 1 : 0;
  };
  const auto run = [&](double limit) {
    context.poll_data = &limit;
    return attention_forward(inputs, {.out = view(out)}, {.causal = true}, context).code();
  };
  const StatusCode whole = run(2.0), stopped = run(0.5);
  std::fprintf(stderr, "\r%s, then %s\n", to_string(whole), to_string(stopped));
  return whole == StatusCode::kOk && stopped == StatusCode::kCancelled ? 0 : 1;
}
