// A worker that ends before it has anything to do with MPI.
int main() {
  return 3;
}
